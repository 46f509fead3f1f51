"""How sizes compare with the native one, and the sizes of the stages of a cascade, for any aspect ratio.

All sizes are (height, width) in latent cells; native is the size that the network was trained at.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from seecoder.presets import ABOVE_NATIVE, scale_over
from seecoder.sampling.views import Size


def exceeds_area(size: Size, native_size: Size) -> bool:
    """Whether views of `size` hold noticeably more cells than the network was trained at."""
    return scale_over(size, native_size) > ABOVE_NATIVE


def exceeds_side(size: Size, native_size: Size, max_sides: float) -> bool:
    """Whether an axis is longer than `max_sides` times the native side."""
    return max(size[0] / native_size[0], size[1] / native_size[1]) > max_sides + 1e-6


def base_size(size: Size, native_size: Size) -> Size:
    """The first stage: the aspect ratio of `size` at (about) the native area, in multiples that a UNet likes.

    A base of the native *area* keeps the number of cells that the network knows, where scaling the longer side down to
    the native side (DemoFusion's rule) would halve the trained pixels at 2:1.
    """
    scale = scale_over(size, native_size)
    if scale <= 1.0:
        return size
    return _multiples([length / scale for length in size], size, native_size)


def panorama_base(size: Size, native_size: Size) -> Size:
    """The first stage of a panorama: its shorter side at the native one, for windows that are whole pictures."""
    factor = max(native_size[0] / size[0], native_size[1] / size[1])
    return scaled_size(size, factor, native_size)


def scaled_size(size: Size, factor: float, native_size: Size) -> Size:
    """`size` times `factor` (at most 1), rounded to `cell_multiple`; exactly `size` at factor 1."""
    if factor >= 1.0:
        return size
    return _multiples([length * factor for length in size], size, native_size)


def cell_multiple(native_size: Size) -> int:
    """The multiple that stage sizes are rounded to: 8 cells, less for networks whose native side is below 32."""
    multiple = 8
    while multiple > 1 and multiple * 4 > min(native_size):
        multiple //= 2
    return multiple


def resized(values: torch.Tensor, size: Sequence[int], **options: Any) -> torch.Tensor:
    """Bring (B, C, H, W) to a size by `interpolate` with these options; what has that size is given back."""
    if tuple(values.shape[-2:]) == tuple(size):
        return values
    return functional.interpolate(values, size=tuple(size), **options)


def _multiples(lengths: list[float], size: Size, native_size: Size) -> Size:
    multiple = cell_multiple(native_size)
    height, width = (max(multiple, multiple * round(length / multiple)) for length in lengths)
    return min(height, size[0]), min(width, size[1])
