"""A picture that a call redraws, all of it or under a mask: its latents and masks at the size of every stage."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from seecoder.call_rules import steps_left, whole_steps
from seecoder.images.masks import NOISE, load_mask
from seecoder.pipelines.inputs import check_aspect, start_pixels
from seecoder.pipelines.request import Request
from seecoder.sampling.image_to_image import StartImage, masks_by_size
from seecoder.sampling.sizes import resized
from seecoder.sampling.views import Size

_DEFAULT_STRENGTH = 0.8  # of diffusers' image to image; 1 with a mask, as in its inpainting


@dataclass(frozen=True, eq=False)
class Redrawing:
    """The `start_image` of a call, and what of it is redrawn.

    Attributes:
        pixels: The picture (1, 3, H, W) in [0, 1], at the size of the result.
        mask: (1, 1, H, W) of zeros and ones, 1 where it is redrawn; None redraws all.
        strength: Fraction in (0, 1] of the trajectory that is made.
        feather: Pixels around the mask over which the result fades into the picture.
        cell: Pixels of one latent cell.
        encoder: Pixels (1, 3, H, W) in [-1, 1] to latents.
    """

    pixels: Tensor
    mask: Tensor | None
    strength: float
    feather: int
    cell: int
    encoder: Callable[[Tensor], Tensor]

    def start(self, *, tells_mask: bool) -> StartImage:
        """What the sampling engine begins with.

        Args:
            tells_mask: Whether the network is told of the mask (`channels`); then nothing is put back.
        """
        masks = None if self.mask is None or tells_mask else masks_by_size(self.mask, self._cells)
        return StartImage(lru_cache(maxsize=1)(self._latents), self.strength, masks)

    def channels(self) -> Callable[[Size], Tensor]:
        """What an inpainting UNet reads below the sample, by size: mask and masked picture, (1, 1 + C, *size)."""
        assert self.mask is not None  # checked by the call
        mask, masks = self.mask, masks_by_size(self.mask, self._cells)

        @lru_cache(maxsize=1)
        def channels(size: Size) -> Tensor:
            pixels = self._at(size)
            hidden = functional.adaptive_max_pool2d(mask, tuple(pixels.shape[-2:]))
            latents = self.encoder((pixels * 2.0 - 1.0) * (1.0 - hidden))
            return torch.cat([masks(size).to(latents), latents], dim=1)

        return channels

    def paste(self, pixels: Tensor) -> Tensor:
        """Put the kept pixels of the picture back into results (N, 3, H, W) in [0, 1]."""
        if self.mask is None:
            return pixels
        weight = feathered(self.mask, self.feather)
        return torch.where(weight == 0.0, self.pixels, weight * pixels + (1.0 - weight) * self.pixels)

    @property
    def _cells(self) -> Size:
        """(height, width) of the result in cells."""
        return self.pixels.shape[-2] // self.cell, self.pixels.shape[-1] // self.cell

    def _latents(self, size: Size) -> Tensor:
        return self.encoder(self._at(size) * 2.0 - 1.0)

    def _at(self, size: Size) -> Tensor:
        """The picture in the pixels of a stage of `size` cells."""
        return _resized(self.pixels, (size[0] * self.cell, size[1] * self.cell))


def redrawing(
    request: Request, size: Size, cell: int, encoder: Callable[[Tensor], Tensor], device: torch.device
) -> Redrawing:
    """Read `start_image` and `mask_image`.

    Args:
        request: The call; it has a `start_image`.
        size: (height, width) of the result in pixels.
        cell: Pixels of one latent cell.
        encoder: Pixels (1, 3, H, W) in [-1, 1] to latents.
        device: Where the networks work.

    Raises:
        ImageError: A picture that cannot be read.
        ValueError: Another aspect ratio than the result's, or a strength that leaves no step.
    """
    assert request.start_image is not None
    pixels = _resized(start_pixels(request.start_image, size, cell), size).to(device)
    mask = None
    if request.mask_image is not None:
        drawn = load_mask(request.mask_image, may_be_black=True)  # which gives the picture back
        check_aspect("mask_image", (drawn.shape[0], drawn.shape[1]), size)
        mask = (_resized(drawn[None, None], size) >= 0.5).to(pixels)
        if drawn.max() >= NOISE and not mask.any():
            raise ValueError("`mask_image` has nothing above one half; what is redrawn must be white.")
    default = _DEFAULT_STRENGTH if mask is None else 1.0
    strength = default if request.strength is None else request.strength
    steps_left(whole_steps(vars(request)), strength)  # before anything is encoded
    return Redrawing(pixels, mask, strength, request.mask_feather, cell, encoder)


def feathered(mask: Tensor, radius: int) -> Tensor:
    """Weight of the redrawn pixels: 1 under the mask, falling to 0 over `radius` pixels around it.

    Args:
        mask: (N, 1, H, W) of zeros and ones.
        radius: In pixels; 0 gives the mask itself.
    """
    if radius == 0:
        return mask
    blurred = mask
    for kernel, padding in (((2 * radius + 1, 1), (radius, 0)), ((1, 2 * radius + 1), (0, radius))):
        blurred = functional.avg_pool2d(blurred, kernel, stride=1, padding=padding, count_include_pad=False)
    return torch.maximum(mask, (2.0 * blurred).clamp(max=1.0))


def _resized(pixels: Tensor, size: Size) -> Tensor:
    return resized(pixels, size, mode="bicubic", antialias=True).clamp(0.0, 1.0)
