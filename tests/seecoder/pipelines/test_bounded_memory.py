"""Lack of memory in the autoencoder: smaller parts, noted, and everything as before afterwards."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from diffusers.configuration_utils import FrozenDict

from seecoder.pipelines.autoencoding import decode_latents
from seecoder.pipelines.bounded_memory import TILES, encode_in_parts, whole_gib
from tests.fixtures.tiles import redundancy


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
    assert notes == [
        "the decode ran out of memory; it was done in tiles of 64 cells, which is close to the whole, not equal."
    ]
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


def without_norms(vae):
    for module in list(vae.decoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.GroupNorm):
                setattr(module, name, torch.nn.Identity())
    return vae.double()


def test_tiles_have_no_seams_where_the_decoder_sees_no_farther_than_the_halo(build):
    """Without norms and attention this decoder sees twelve cells to each side, which is what tiles are given."""
    vae = without_norms(build["vae"](mid_block_add_attention=False))
    latents = torch.randn((1, 4, 72, 150), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, _ = decode_latents(vae, latents)
    tiled, notes = decode_latents(vae, latents, memory=whole_gib(vae, (72, 128)))
    assert "in tiles of 128 cells" in notes[0]
    torch.testing.assert_close(tiled, whole, atol=1e-12, rtol=0)


class ShortSighted(torch.nn.Module):
    """An autoencoder whose decoder sees four cells to each side, and whose encoder sees one."""

    def __init__(self) -> None:
        super().__init__()
        self.config = FrozenDict({"block_out_channels": (8, 8), "scaling_factor": 1.0})
        self.decoder = torch.nn.Sequential(
            torch.nn.Conv2d(4, 8, 7, padding=3),
            torch.nn.Tanh(),
            torch.nn.Upsample(scale_factor=2),
            torch.nn.Conv2d(8, 3, 3, padding=1),
        )
        self.encoder = torch.nn.Conv2d(3, 4, 4, 2, padding=1)

    @property
    def dtype(self):
        return self.encoder.weight.dtype

    def decode(self, latents, return_dict):
        return (self.decoder(latents),)

    def encode(self, pixels):
        return SimpleNamespace(latents=self.encoder(pixels))


@pytest.mark.parametrize("tile", [64, 48])
def test_smaller_tiles_have_smaller_halos_and_no_seams_within_their_sight(tile):
    torch.manual_seed(0)
    vae = ShortSighted().double().requires_grad_(False)
    memory = whole_gib(vae, (tile, tile))
    latents = torch.randn((2, 4, 72, 190), dtype=torch.float64)
    whole, _ = decode_latents(vae, latents)
    tiled, notes = decode_latents(vae, latents, memory=memory)
    assert f"in tiles of {tile} cells" in notes[0]
    torch.testing.assert_close(tiled, whole, atol=1e-12, rtol=0)
    notes = []
    encoded = encode_in_parts(vae, whole, memory=whole_gib(vae, (tile, tile), way="encode"), notes=notes)
    assert f"the encode was done in tiles of {tile} cells" in notes[0]
    torch.testing.assert_close(encoded, vae.encoder(whole), atol=1e-12, rtol=0)


def test_all_tiles_keep_redundant_work_below_a_factor_of_1_8():
    for tiles in TILES:
        margins = tiles._asdict()
        sides = range(tiles.tile // 2, 700, 9)
        assert max(redundancy((side, other), **margins) for side in sides for other in (tiles.tile, 200, 512)) <= 1.8


def test_the_size_decides_up_front_and_the_whole_can_be_asked_for(build, latents):
    vae = fresh(build)
    seen = []
    vae.decoder.register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0].shape)))
    gib = whole_gib(vae, (24, 40))
    assert decode_latents(vae, latents, memory=2 * gib)[1] == []
    assert seen == [(2, 4, 24, 40)]
    seen.clear()
    one_by_one, notes = decode_latents(vae, latents, memory=gib)
    assert (seen, notes) == ([(1, 4, 24, 40)] * 2, [])  # changes nothing, so nothing is said
    torch.testing.assert_close(one_by_one, decode_latents(vae, latents, memory=math.inf)[0], atol=1e-5, rtol=0)
    wide = torch.randn(1, 4, 8, 140)
    seen.clear()
    assert decode_latents(vae, wide)[1] == []
    vae.enable_tiling()
    _, notes = decode_latents(vae, wide)
    assert "tiles of 128 cells" in notes[0]
    assert vae.use_tiling
    assert seen == [(1, 4, 8, 140), (1, 4, 8, 70), *[(1, 4, 8, 86)] * 2]  # whole; shrunk whole, two tiles


def test_the_estimate_is_what_a_decode_holds(build):
    """Torch's own tracker counts what is alive; the widths are Stable Diffusion's."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    with FakeTensorMode():
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        widths = {"block_out_channels": (128, 256, 512, 512), "norm_num_groups": 32, "layers_per_block": 2}
        vae = build["vae"](**blocks, **widths)
        for way in ("decode", "encode"):
            given = torch.empty(1, 4, 64, 64) if way == "decode" else torch.empty(1, 3, 512, 512)
            tracker = MemTracker()
            tracker.track_external(vae, given)
            with torch.no_grad(), tracker:
                vae.decode(given) if way == "decode" else vae.encode(given).latent_dist.mode()
            peak = next(iter(tracker.get_tracker_snapshot("peak").values()))
            held = next(value for kind, value in peak.items() if "ACT" in str(kind))
            assert whole_gib(vae, (64, 64), way) == pytest.approx(held / 2**30, rel=0.01)
