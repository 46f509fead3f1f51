"""The size at which an encoder sees a picture."""

import math

import torch
from torch.nn import functional

from seecoder.images.gate import ImageError, Source, describe

ENCODED_SIZE = 512  # pixels; what released encoders were trained on, and the default of `image_size`
_SMALLEST = 32  # pixels a side that every encoder needs


def encodable(source: Source, pixels: torch.Tensor, side: int | None) -> torch.Tensor:
    """Bring a picture to the size at which an encoder sees it.

    Args:
        source: What the picture was loaded from, for the error.
        pixels: (3, H, W) in [0, 1].
        side: As for `limit_area`.

    Returns:
        (3, h, w) in [0, 1].

    Raises:
        ImageError: If it is too small for any encoder.
        ValueError: If `side` is too small.
    """
    height, width = pixels.shape[-2:]
    if min(height, width) < _SMALLEST:
        reason = f"its {width} x {height} pixels are too few to encode; use a picture of at least {_SMALLEST} a side"
        raise ImageError(describe(source), reason)
    return limit_area(pixels, side)


def limit_area(pixels: torch.Tensor, side: int | None) -> torch.Tensor:
    """Reduce a picture that has more pixels than a square of `side`, for an encoder that was trained on such squares.

    Bicubic with antialiasing. The aspect ratio is kept to a pixel, except where the shorter side would fall below 32
    pixels. Smaller pictures are returned as they are; nothing is ever enlarged.

    Args:
        pixels: (3, H, W) in [0, 1].
        side: Of the square, in pixels; None changes nothing.

    Returns:
        (3, h, w) in [0, 1], h * w near side * side or below.

    Raises:
        ValueError: If `side` is below 32.
    """
    if side is None:
        return pixels
    if side < _SMALLEST:
        raise ValueError(f"`image_size`={side} is too small; use {_SMALLEST} pixels or more, or None for the own size.")
    height, width = pixels.shape[-2:]
    if height * width <= side * side:
        return pixels
    share = side / math.sqrt(height * width)
    size = [max(min(length, _SMALLEST), round(share * length)) for length in (height, width)]
    small = functional.interpolate(pixels[None].float(), size=size, mode="bicubic", antialias=True)
    return small[0].clamp(0.0, 1.0).to(pixels.dtype)
