"""How one stage's picture becomes the next, larger one's: in latents, or through pixels."""

from typing import Literal

import torch
from torch.nn import functional

from seecoder.checks import choice
from seecoder.sampling.sizes import resized
from seecoder.sampling.stages import Run
from seecoder.sampling.views import Size

Space = Literal["latents", "pixels"]
SPACE = choice("latents", "pixels")


def enlarged(run: Run, latents: torch.Tensor, size: Size, space: Space) -> torch.Tensor:
    """Enlarge clean latents.

    Latents of an autoencoder are no picture: enlarged directly (bicubic) they decode with soft edges, and with fringes
    of foreign colour where the autoencoder is coarse for what it shows. Through pixels (bilinear) both are avoided, at
    the cost of a decode and an encode.

    Args:
        run: Its decoder and encoder are used for "pixels".
        latents: (B, C, h, w).
        size: (height, width) in cells.
        space: Where latents are enlarged, "latents" or "pixels".

    Returns:
        (B, C, *size) in the dtype given.

    Raises:
        ValueError: Pixels without a decoder and an encoder (`check_enlargement` says so before the first step).
    """
    if space == "latents":
        return resized(latents, size, mode="bicubic", align_corners=False)
    if run.decoder is None or run.encoder is None:
        raise ValueError('resize_in="pixels" needs `decoder` and `encoder`.')
    pixels = run.decoder(latents)
    cell = pixels.shape[-1] // latents.shape[-1]
    large = functional.interpolate(pixels, size=(size[0] * cell, size[1] * cell), mode="bilinear", align_corners=False)
    return run.encoder(large).to(latents.dtype)


def check_enlargement(name: str, run: Run, space: Space) -> None:
    """Refuse a run of the method `name` that lacks what enlarging in `space` needs.

    Raises:
        ValueError: Pixels without a decoder and an encoder.
    """
    if space == "pixels" and (run.decoder is None or run.encoder is None):
        raise ValueError(f'{name}() needs `decoder` and `encoder`. Give them, or set resize_in="latents".')
