"""Decoding and encoding large pictures in tiles: bounded memory, little redundant work, no seams.

A tile is a core, a strip of `feather` cells over which neighbouring tiles are blended, and a `halo` of context that is
computed and thrown away. Where the network sees no farther than `halo` cells the result equals that of the whole; where
it does, `tile_statistics` gives all tiles the normalisation of the whole, and what is left (attention, the rest of a
longer sight) is a small difference that the blend spreads. At the borders of the picture a tile ends where the picture
ends, so that the network's own padding is that of the whole.

Kept in place of diffusers' tiled decoding, which has neither a halo nor closed loops nor the norms of the whole.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch

from seecoder.sampling.views import Size


class Segment(NamedTuple):
    """One tile along one axis, in cells: decoded from start to stop, kept (and blended) from first to last."""

    start: int
    stop: int
    first: int
    last: int


def segments(length: int, tile: int, halo: int, feather: int, wrap: bool = False) -> list[Segment]:
    """Tiles along one axis: as few as fit, with cores of (nearly) equal length.

    Args:
        length: Cells along the axis.
        tile: Most cells that a tile may have.
        halo: Cells of context on each side.
        feather: Cells on each side over which neighbours are blended.
        wrap: The axis is a circle; starts may be negative and stops beyond the length.

    Raises:
        ValueError: If too little is left of a tile between its margins.
    """
    margin = halo + feather
    smallest = 2 * margin + max(1, 4 * feather)  # cores may come out half as long, and hold two half blends
    if tile < smallest:
        raise ValueError(f"`tile`={tile} is too small for margins of {margin} cells. Use at least {smallest}.")
    if length <= tile and not wrap:
        return [Segment(0, length, 0, length)]
    count = 1 if length + 2 * halo <= tile else -(-length // (tile - 2 * margin))
    bounds = [round(length * place / count) for place in range(count + 1)]
    blend = feather if count > 1 else 0
    found = []
    for low, high in pairwise(bounds):
        first, last = low - blend, high + blend
        start, stop = first - halo, last + halo
        if not wrap:
            first, last = (0 if low == 0 else first), (length if high == length else last)
            start, stop = max(0, start), min(length, stop)
        found.append(Segment(start, stop, first, last))
    return found


def ramp(segment: Segment, length: int, feather: int, scale: int, wrap: bool) -> torch.Tensor:
    """Blending weights of a segment's kept pixels: 1 inside, linear over 2 * feather cells at inner joints."""
    pixels = (segment.last - segment.first) * scale
    weights = torch.ones(pixels, dtype=torch.float64)
    zone = 2 * feather * scale
    rise = (torch.arange(zone, dtype=torch.float64) + 0.5) / zone if zone else weights[:0]
    is_whole = wrap and segment.last - segment.first == length
    if (wrap or segment.first > 0) and not is_whole and zone:
        weights[:zone] = rise
    if (wrap or segment.last < length) and not is_whole and zone:
        weights[-zone:] = torch.minimum(weights[-zone:], rise.flip(0))
    return weights


def in_tiles(
    network: Callable[[torch.Tensor], torch.Tensor],
    values: torch.Tensor,
    *,
    finer: int = 1,
    tile: int = 128,
    halo: int = 12,
    feather: int = 4,
    wrap: bool = False,
) -> torch.Tensor:
    """Put latents through a decoder, or pixels through an encoder, tile by tile.

    Args:
        network: Values (N, C, f*h, f*w) -> (N, channels, s*h, s*w), for any h and w, one integer s and f as `finer`.
        values: (N, C, f*H, f*W).
        finer: Samples along a cell: 1 for latents, for pixels those of one latent cell.
        tile: Largest side of a tile in cells; 128 is one native picture of SDXL.
        halo: Context in cells; the receptive field of the network for an exact result.
        feather: Half of the width of the blend between tiles, in cells.
        wrap: Columns wrap around, as those of a closed panorama do.

    Returns:
        (N, channels, s*H, s*W), in the network's data type.

    Raises:
        ValueError: If a side is not a multiple of `finer`, or zero.
    """
    if any(side % finer or not side for side in values.shape[-2:]):
        raise ValueError(f"`values` of {tuple(values.shape[-2:])} must have sides that are multiples of {finer}.")
    height, width = values.shape[-2] // finer, values.shape[-1] // finer
    rows, columns = segments(height, tile, halo, feather), segments(width, tile, halo, feather, wrap)
    if len(rows) == len(columns) == 1 and not wrap:
        return network(values)
    canvas = torch.empty(0)
    for row in rows:
        for column in columns:
            places = torch.arange(column.start * finer, column.stop * finer, device=values.device) % values.shape[-1]
            part = network(values[..., row.start * finer : row.stop * finer, :][..., places])
            scale = part.shape[-2] // (row.stop - row.start)
            if not canvas.numel():
                canvas = part.new_zeros((*part.shape[:2], height * scale, width * scale))
            _blend(canvas, part, (row, column), (height, width), feather, scale, wrap)
    return canvas


def _blend(
    canvas: torch.Tensor,
    pixels: torch.Tensor,
    tile: tuple[Segment, Segment],
    size: Size,
    feather: int,
    scale: int,
    wrap: bool,
) -> None:
    """Add the kept part of a tile to the canvas, in place."""
    row, column = tile
    top, left = (row.first - row.start) * scale, (column.first - column.start) * scale
    vertical = ramp(row, size[0], feather, scale, wrap=False).to(pixels)
    horizontal = ramp(column, size[1], feather, scale, wrap).to(pixels)
    kept = pixels[..., top : top + len(vertical), left : left + len(horizontal)]
    places = torch.arange(column.first * scale, column.last * scale, device=pixels.device) % canvas.shape[-1]
    strip = canvas[..., row.first * scale : row.last * scale, :]
    strip.index_add_(-1, places, kept * vertical[:, None] * horizontal[None, :])
