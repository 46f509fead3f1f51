"""Masks and control pictures: pictures whose transparency does not mean what it means in a photograph."""

import logging

import numpy as np
import torch
from torch.nn import functional

from seecoder.images.gate import MAX_PIXELS, ImageError, Source, describe, read_pixels, to_tensor

_log = logging.getLogger(__name__)

_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green, blue (ITU-R BT.601), as Pillow's grey
NOISE = 0.02  # what compression does to plain black or white: five levels of 255


def load_mask(
    source: Source,
    size: tuple[int, int] | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    may_be_black: bool = False,
    may_be_white: bool = False,
) -> torch.Tensor:
    """Load a mask: how much each pixel counts.

    A picture whose transparency varies is read by it: paint counts, whatever its colour, and what is transparent does
    not. Any other picture is read by its luminance: white counts, black does not, grey in part. A mask that counts
    everywhere is seldom meant: a warning says so, unless it is a tensor, which a program made.

    Args:
        source: A picture of any kind that `load_image` takes.
        size: (height, width) in pixels to stretch the mask to; None for its own.
        max_pixels: As for `load_image`.
        may_be_black: Whether a mask of which nothing counts (black, or nothing painted) means something; it is refused
            otherwise.
        may_be_white: Whether a mask that counts everywhere is nothing to warn of.

    Returns:
        (H, W) float32 in [0, 1], on the CPU.

    Raises:
        ImageError: If the picture cannot be read, or nothing in it counts.
    """
    pixels = _read_levels(source, max_pixels)
    white = np.float32(255 if pixels.dtype == np.uint8 else 1)
    values = torch.from_numpy(pixels.astype(np.float32) / white).movedim(2, 0)
    alpha = values[-1] if len(values) in (2, 4) else torch.ones_like(values[0])
    is_empty = float(alpha.max()) < NOISE
    if float(alpha.max() - alpha.min()) > NOISE or (is_empty and may_be_black):
        mask = alpha
    elif is_empty:
        raise ImageError(describe(source), "it is transparent everywhere; paint what shall count")
    else:
        mask = values[0] if len(values) < 3 else torch.tensordot(torch.tensor(_LUMINANCE), values[:3], dims=1)
        if float(mask.max()) < NOISE and not may_be_black:
            raise ImageError(describe(source), "it is black everywhere; what shall count must be white")
    if float(mask.min()) > 1 - NOISE and not (may_be_white or isinstance(source, torch.Tensor)):
        _log.warning("`%s`: this mask is white everywhere, so that the whole picture counts", describe(source))
    if size is None:
        return mask.clamp(0.0, 1.0)
    stretched = functional.interpolate(mask[None, None], size=size, mode="bilinear", antialias=True)
    return stretched[0, 0].clamp(0.0, 1.0)


def load_control_image(source: Source, *, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    """Load what a ControlNet sees: lines, a pose or a depth map.

    Transparent pixels are black, which is the ground of all such pictures.

    Args:
        source: A picture of any kind that `load_image` takes.
        max_pixels: As for `load_image`.

    Returns:
        (3, H, W) float32 in [0, 1], on the CPU.

    Raises:
        ImageError: If the picture cannot be read, or nothing is seen: black paint on transparency.
    """
    levels = _read_levels(source, max_pixels)
    pixels = to_tensor(levels, (0, 0, 0))
    if not pixels.any() and to_tensor(levels, (255, 255, 255)).any():
        raise ImageError(
            describe(source),
            "transparent pixels are black to a ControlNet, and so is all that is painted on them; paint it white",
        )
    return pixels


def _read_levels(source: Source, max_pixels: int) -> np.ndarray:
    """Pixels as of `read_pixels`; where these are 0 and 1, as of segmentation programs, they are black and white."""
    if isinstance(source, np.ndarray | torch.Tensor) and ((source == 0) | (source == 1)).all():
        source = source == 1
    pixels = read_pixels(source, max_pixels)
    colours = pixels[..., : 3 if pixels.shape[2] > 2 else 1]
    one, white = (1, 255) if pixels.dtype == np.uint8 else (np.float32(1 / 65535), 1)
    if colours.max() == one:
        _log.warning("`%s`: its values are 0 and 1, which are read as black and white", describe(source))
        colours[colours > 0] = white
    return pixels
