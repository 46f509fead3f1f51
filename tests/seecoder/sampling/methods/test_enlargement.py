"""Between stages pictures grow in latents, or through pixels."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from seecoder.sampling.methods.enlargement import check_enlargement, enlarged

CELL = 2  # pixels


def decode(latents: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(latents[:, :3], scale_factor=CELL, mode="nearest")


def encode(pixels: torch.Tensor) -> torch.Tensor:
    return torch.cat([functional.avg_pool2d(pixels, CELL), functional.avg_pool2d(pixels[:, :1], CELL)], dim=1).float()


RUN = SimpleNamespace(decoder=decode, encoder=encode)
BARE = SimpleNamespace(decoder=None, encoder=None)


@pytest.mark.parametrize("space", ["latents", "pixels"])
def test_constant_latents_stay_what_they_are(space) -> None:
    latents = torch.full((2, 4, 3, 5), 1.5, dtype=torch.float64)
    large = enlarged(RUN, latents, (6, 9), space)
    assert large.dtype == torch.float64
    torch.testing.assert_close(large, torch.full((2, 4, 6, 9), 1.5, dtype=torch.float64))


def test_pixels_are_enlarged_bilinearly_at_the_cell_of_the_autoencoder() -> None:
    latents = torch.randn((1, 4, 3, 5), generator=torch.Generator().manual_seed(0))
    pixels = functional.interpolate(decode(latents), size=(12, 20), mode="bilinear", align_corners=False)
    assert torch.equal(enlarged(RUN, latents, (6, 10), "pixels"), encode(pixels))


def test_pixels_need_an_autoencoder() -> None:
    check_enlargement("DemoFusion", RUN, "pixels")
    check_enlargement("DemoFusion", BARE, "latents")
    with pytest.raises(ValueError, match=r"DemoFusion\(\) needs `decoder` and `encoder`.* resize_in=\"latents\""):
        check_enlargement("DemoFusion", BARE, "pixels")
    with pytest.raises(ValueError, match="needs `decoder` and `encoder`"):
        enlarged(BARE, torch.zeros(1, 4, 2, 2), (4, 4), "pixels")
