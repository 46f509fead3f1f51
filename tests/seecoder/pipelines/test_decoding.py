"""NaN and lack of memory in the decode: one remedy each, said aloud, and everything as before afterwards."""

import logging

import pytest
import torch

from seecoder import SeeCoderPipeline
from seecoder.pipelines.decoding import decode_latents, in_float32, unscale_latents


def fresh(build, dtype=torch.float32):
    return build["vae"]().to(dtype)


def snapshot(vae):
    settings = (vae.use_tiling, vae.use_slicing, vae.tile_latent_min_size, vae.tile_sample_min_size)
    tensors = list(vae.state_dict().values())
    return settings, [tensor.clone() for tensor in tensors], [tensor.data_ptr() for tensor in tensors]


def assert_as_before(vae, before):
    settings, tensors, places = snapshot(vae)
    assert settings == before[0]
    assert all(
        torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(tensors, before[1], strict=True)
    )
    assert places == before[2]


@pytest.fixture
def latents():
    return torch.randn((2, 4, 24, 40), generator=torch.Generator().manual_seed(0))


def overflow_in_half(vae):
    """Make the decoder overflow in half precision only, as a large activation does."""

    def hook(module, given, output):
        return output if output.dtype == torch.float32 else output * float("nan")

    return vae.decoder.register_forward_hook(hook)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nan_in_half_precision_is_decoded_again_in_float32(build, latents, dtype, caplog):
    vae = fresh(build, dtype)
    reference = fresh(build, dtype).float()
    overflow_in_half(vae)
    before = snapshot(vae)
    with caplog.at_level(logging.WARNING), torch.no_grad():
        pixels, notes = decode_latents(vae, latents)
        expected = reference.decode(latents / reference.config.scaling_factor).sample
    torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=0)
    assert len(notes) == 1
    assert "repeated in float32" in notes[0]
    assert "repeated in float32" in caplog.text
    assert_as_before(vae, before)


def test_nan_in_float32_is_a_clear_error(build, latents):
    vae = fresh(build, torch.bfloat16)
    vae.decoder.register_forward_hook(lambda module, given, output: output * float("nan"))
    before = snapshot(vae)
    with pytest.raises(RuntimeError, match=r"in float32 too\. Use another VAE"):
        decode_latents(vae, latents)
    assert_as_before(vae, before)
    with pytest.raises(RuntimeError, match="although the VAE is in float32"):
        decode_latents(vae.float(), latents)


def test_nan_in_the_latents_is_not_blamed_on_the_vae(build, latents):
    latents[0, 0, 0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="the denoised latents contain NaN"):
        decode_latents(fresh(build), latents)


def short_of_memory(vae, cells, error=torch.OutOfMemoryError):
    """Let the decoder fail above a number of cells in one pass, all pictures of the batch together."""

    def hook(module, given):
        if given[0].shape[0] * given[0].shape[-2] * given[0].shape[-1] > cells:
            raise error(
                "CUDA out of memory. Tried to allocate" if error is torch.OutOfMemoryError else "can't allocate memory"
            )

    return vae.decoder.register_forward_pre_hook(hook)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_out_of_memory_is_decoded_in_tiles(build, error, caplog):
    vae = fresh(build)
    latents = torch.randn((1, 4, 24, 96), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, notes = decode_latents(vae, latents)
        assert notes == []
        short_of_memory(vae, 24 * 64, error)
        before = snapshot(vae)
        with caplog.at_level(logging.WARNING):
            tiled, notes = decode_latents(vae, latents)
    assert_as_before(vae, before)
    assert notes == ["the decode ran out of memory; it was done in tiles of 64 cells, which can shift tones."]
    assert notes[0] in caplog.text
    assert tiled.shape == whole.shape
    # Tiles have their own norms and attention: alike, not equal.
    assert (tiled - whole).abs().mean() < 0.1 * whole.abs().mean()


def test_a_batch_is_first_tried_one_by_one(build, latents):
    vae = fresh(build)
    whole, _ = decode_latents(vae, latents)
    short_of_memory(vae, 24 * 40)
    one_by_one, notes = decode_latents(vae, latents)
    torch.testing.assert_close(one_by_one, whole, atol=1e-5, rtol=0)
    assert "one picture at a time, which changes nothing else" in notes[0]
    assert len(notes) == 1


def test_out_of_memory_in_tiles_too_is_a_clear_error(build, latents):
    vae = fresh(build)
    short_of_memory(vae, 0)
    before = snapshot(vae)
    with pytest.raises(RuntimeError, match="no memory left to decode latents of 24x40 cells, in tiles too"):
        decode_latents(vae, latents)
    assert_as_before(vae, before)


def test_other_errors_are_not_swallowed(build, latents):
    vae = fresh(build)

    def fail(module, given):
        raise RuntimeError("something else")

    vae.decoder.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="something else"):
        decode_latents(vae, latents)


def test_tensors_come_back_even_after_an_error(build):
    vae = fresh(build, torch.float16)
    before = snapshot(vae)

    def fail():
        with in_float32(vae):
            assert vae.dtype == torch.float32
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert_as_before(vae, before)


def test_statistics_of_the_latents_are_undone(build, latents):
    mean, deviation = (0.1, -0.2, 0.3, 0.0), (1.0, 2.0, 0.5, 1.5)
    vae = build["vae"](latents_mean=mean, latents_std=deviation)
    found = unscale_latents(vae, latents)
    expected = latents * torch.tensor(deviation).view(1, 4, 1, 1) / 0.18215 + torch.tensor(mean).view(1, 4, 1, 1)
    torch.testing.assert_close(found, expected)


def test_the_pipeline_says_what_it_had_to_do(parts, build, picture):
    vae = fresh(build, torch.bfloat16)
    overflow_in_half(vae)
    pipe = SeeCoderPipeline(**{**parts, "vae": vae})
    pipe.set_progress_bar_config(disable=True)
    output = pipe(picture, num_inference_steps=1)
    assert "repeated in float32" in output.notes[0]
    assert output.images[0].getextrema() != ((0, 0),) * 3


@pytest.mark.parametrize("tile", [64, 48])
def test_tiles_have_no_seams_where_the_decoder_sees_no_farther_than_the_halo(build, tile):
    """Without norms and attention this decoder sees twelve cells to each side, which is what tiles are given."""
    vae = build["vae"](mid_block_add_attention=False).double()
    for module in list(vae.decoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.GroupNorm):
                setattr(module, name, torch.nn.Identity())
    latents = torch.randn((1, 4, 72, 90), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, _ = decode_latents(vae, latents)
    short_of_memory(vae, tile * tile)
    tiled, notes = decode_latents(vae, latents)
    assert f"in tiles of {tile} cells" in notes[0]
    torch.testing.assert_close(tiled, whole, atol=1e-12, rtol=0)
