import pytest
import torch

from seecoder.sampling.tiles.tiling import in_tiles, ramp, segments
from tests.fixtures.tiles import redundancy


def toy_decoder(circular: bool = False) -> torch.nn.Module:
    """Two convolutions around a doubling: sees three cells to each side."""
    mode = "circular" if circular else "zeros"
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(4, 6, 5, padding=2, padding_mode=mode),
        torch.nn.Tanh(),
        torch.nn.Upsample(scale_factor=2),
        torch.nn.Conv2d(6, 3, 3, padding=1, padding_mode=mode),
    ).double()
    return layers.requires_grad_(False)


@pytest.mark.parametrize("size", [(40, 40), (64, 23), (13, 90), (41, 57)])
@pytest.mark.parametrize("feather", [0, 2])
def test_check_25_tiles_equal_the_full_decode_of_a_decoder_that_sees_no_farther_than_the_halo(size, feather) -> None:
    torch.manual_seed(0)
    decoder, latents = toy_decoder(), torch.randn((2, 4, *size), dtype=torch.float64)
    tiled = in_tiles(decoder, latents, tile=24, halo=3, feather=feather)
    assert torch.allclose(tiled, decoder(latents), atol=1e-12)


def test_check_25_a_halo_that_is_too_small_is_noticed() -> None:
    torch.manual_seed(0)
    decoder, latents = toy_decoder(), torch.randn((1, 4, 40, 40), dtype=torch.float64)
    assert not torch.allclose(in_tiles(decoder, latents, tile=24, halo=1, feather=0), decoder(latents), atol=1e-3)


def test_check_25_redundant_work_stays_below_a_factor_of_two() -> None:
    assert redundancy((128, 128)) == 1.0
    worst = max(redundancy((height, width)) for height in range(64, 700, 9) for width in (128, 200, 512, 2000))
    assert worst <= 1.8
    assert redundancy((512, 512)) > 1.0
    assert max(redundancy((64, width), wrap=True) for width in range(128, 1100, 8)) <= 1.8


@pytest.mark.parametrize("width", [20, 48, 60])
@pytest.mark.parametrize("shift", [4, 17])
def test_check_06_a_wrapped_decode_rolls_with_its_latents(width, shift) -> None:
    torch.manual_seed(0)
    decoder, latents = toy_decoder(), torch.randn((1, 4, 16, width), dtype=torch.float64)

    def decode(values: torch.Tensor) -> torch.Tensor:
        return in_tiles(decoder, values, tile=28, halo=3, feather=2, wrap=True)

    rolled = decode(latents.roll(shift, -1)).roll(-2 * shift, -1)
    assert torch.allclose(rolled, decode(latents), atol=1e-12)
    circular = toy_decoder(circular=True)
    circular.load_state_dict(decoder.state_dict())
    rows = slice(8, -8)  # the circular decoder also wraps top and bottom
    assert torch.allclose(decode(latents)[..., rows, :], circular(latents)[..., rows, :], atol=1e-12)


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("length", [30, 64, 65, 131, 257])
def test_blending_weights_are_a_partition_of_unity(length, wrap) -> None:
    total = torch.zeros(2 * length, dtype=torch.float64)
    for segment in segments(length, 48, 6, 3, wrap):
        places = torch.arange(2 * segment.first, 2 * segment.last) % (2 * length)
        total.index_add_(0, places, ramp(segment, length, 3, 2, wrap))
        assert segment.stop - segment.start <= 48 or length <= 48
    assert torch.allclose(total, torch.ones_like(total))


def test_a_small_picture_is_decoded_whole() -> None:
    calls = []
    in_tiles(
        lambda z: calls.append(z.shape) or z.repeat_interleave(2, 2).repeat_interleave(2, 3), torch.ones(1, 4, 64, 64)
    )
    assert calls == [(1, 4, 64, 64)]


def test_tiles_without_a_core_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`tile`=32 is too small for margins of 16 cells. Use at least 48"):
        segments(100, 32, 12, 4)


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("tile", [64, 48])
def test_tiles_of_different_tone_run_into_each_other(tile, wrap) -> None:
    """Where norms give every tile a tone of its own the blend spreads the step over all of its width."""
    feather, tones = 4, iter(range(1000))

    def decoder(latents: torch.Tensor) -> torch.Tensor:
        height, width = latents.shape[-2:]
        return torch.full((1, 1, 2 * height, 2 * width), 10.0 * (next(tones) % 2), dtype=torch.float64)

    pixels = in_tiles(decoder, torch.zeros(1, 4, 8, 160), tile=tile, halo=12, feather=feather, wrap=wrap)
    steps = pixels.diff(dim=-1).abs()
    assert pixels.min() == 0.0
    assert pixels.max() == 10.0
    assert steps.max() <= 10.0 / (2 * feather * 2) + 1e-12  # cells of two pixels
