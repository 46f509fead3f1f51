"""Scaled latents to pixels and back, and NaN in a half-precision decode: one remedy, noted, and no trace of it left."""

import logging
import math

import pytest
import torch

from seecoder import SeeCoderPipeline
from seecoder.pipelines.autoencoding import decode_latents, in_float32, vae_decoder, vae_encoder


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


def test_only_the_picture_that_overflows_is_decoded_again(build, latents):
    vae = fresh(build, torch.bfloat16)

    def spoil_the_second(module, given, output):
        is_half_batch = output.dtype == torch.bfloat16 and len(output) == 2
        return torch.stack([output[0], output[1] * float("nan")]) if is_half_batch else output

    alone, _ = decode_latents(vae, latents[:1])
    vae.decoder.register_forward_hook(spoil_the_second)
    pixels, notes = decode_latents(vae, latents)
    expected, _ = decode_latents(fresh(build, torch.bfloat16).float(), latents)
    torch.testing.assert_close(pixels[:1], alone.float(), atol=2e-2, rtol=0)
    torch.testing.assert_close(pixels[1], expected[1], atol=1e-5, rtol=0)
    assert not torch.allclose(pixels[0], expected[0], atol=1e-5, rtol=0)  # still what half precision gave
    assert len(notes) == 1


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


def test_the_pipeline_says_what_it_had_to_do(parts, build, picture):
    vae = fresh(build, torch.bfloat16)
    overflow_in_half(vae)
    pipe = SeeCoderPipeline(**{**parts, "vae": vae})
    pipe.set_progress_bar_config(disable=True)
    output = pipe(picture, num_inference_steps=1)
    assert "repeated in float32" in output.notes[0]
    assert output.images[0].getextrema() != ((0, 0),) * 3


def test_codecs_scale_latents_as_the_unet_sees_them(tiny_vae):
    pixels = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = vae_encoder(tiny_vae, math.inf, [])(pixels)
        expected = tiny_vae.encode(pixels).latent_dist.mode()
        torch.testing.assert_close(latents, expected * tiny_vae.config.scaling_factor)
        torch.testing.assert_close(
            vae_decoder(tiny_vae, math.inf, [], (8, 8))(latents), tiny_vae.decode(expected).sample, atol=1e-5, rtol=1e-4
        )


def test_decoder_lets_gradients_through(tiny_vae):
    latents = torch.randn((1, 4, 8, 8), requires_grad=True)
    vae_decoder(tiny_vae, math.inf, [], (8, 8))(latents).sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().max() > 0


def test_windows_with_gradients_are_decoded_one_at_a_time_and_like_those_without(tiny_vae):
    seen = []
    handle = tiny_vae.decoder.register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0].shape)))
    decoder = vae_decoder(tiny_vae, 1e-9, [], (8, 8))  # a limit that everything is above
    latents = torch.randn((3, 4, 8, 8), requires_grad=True)
    pictures = decoder(latents)
    assert seen == [(1, 4, 8, 8)] * 3
    torch.testing.assert_close(pictures, decoder(latents.detach()), atol=1e-5, rtol=0)
    pictures.square().sum().backward()
    handle.remove()
    plain = latents.detach().clone().requires_grad_()
    tiny_vae.decode(plain / tiny_vae.config.scaling_factor).sample.square().sum().backward()
    torch.testing.assert_close(latents.grad, plain.grad, atol=1e-5, rtol=1e-4)


def test_layers_that_are_offloaded_one_by_one_cannot_be_held_in_float32(build):
    vae = fresh(build, torch.bfloat16)
    vae.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")
    with pytest.raises(RuntimeError, match="AutoencoderKL is offloaded layer by layer and has to work in float32"):
        in_float32(vae).__enter__()


def test_weights_that_are_stored_in_another_precision_decode_as_they_work(build, latents):
    vae = fresh(build)
    whole, _ = decode_latents(vae, latents)
    vae.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
    found, notes = decode_latents(vae, latents)
    assert not notes
    torch.testing.assert_close(found, whole, atol=0.02, rtol=0)
