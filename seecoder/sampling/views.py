"""Geometry of views: which cells of the latents a denoiser sees at once. Pure integers and tensors, no networks.

A view is a rectangle (a window, as in MultiDiffusion) or a regular lattice of every s-th cell (DemoFusion's dilated
sampling), possibly wrapped around the left and right borders (closed panoramas).
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import torch

Size = tuple[int, int]


class View(NamedTuple):
    """Rows top, top + row_stride, … (height of them) and columns likewise, in latent cells.

    With `wrap` columns are taken modulo the width of the latents.
    """

    top: int
    left: int
    height: int
    width: int
    row_stride: int = 1
    column_stride: int = 1
    wrap: bool = False

    @property
    def size(self) -> Size:
        """(height, width) of what the denoiser sees, in cells."""
        return self.height, self.width

    def _strip(self, latents: torch.Tensor) -> torch.Tensor:
        """The rows of this view in (..., H, W), with all their columns."""
        return latents[..., self.top : self.top + self.height * self.row_stride : self.row_stride, :]

    def _columns(self, latents: torch.Tensor) -> slice | torch.Tensor:
        """The columns of this view in (..., H, W); numbers only where they go around the border."""
        total, span = latents.shape[-1], self.width * self.column_stride
        if self.wrap and not 0 <= self.left <= total - span:
            return (self.left + self.column_stride * torch.arange(self.width, device=latents.device)) % total
        return slice(self.left, self.left + span, self.column_stride)

    def gather(self, latents: torch.Tensor) -> torch.Tensor:
        """The cells of this view: (..., H, W) -> (..., height, width)."""
        return self._strip(latents)[..., self._columns(latents)]

    def scatter_add(self, total: torch.Tensor, values: torch.Tensor) -> None:
        """Add `values` (..., height, width) to the cells of this view in `total` (..., H, W), in place."""
        columns = self._columns(total)
        if isinstance(columns, slice):
            self._strip(total)[..., columns] += values
        else:
            self._strip(total).index_add_(-1, columns, values)


@lru_cache(maxsize=256)
def full_view(size: Size) -> View:
    """The view that holds all cells of latents of this size."""
    return View(0, 0, *size)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First cells of windows along one axis: every `stride`, the last one clamped so that every cell is covered.

    Source: DemoFusion's grid; unlike MultiDiffusion's floor((length - window) / stride) + 1 it leaves no rest.

    Raises:
        ValueError: If `stride` is not within 1..window, where cells between windows would be seen by none.
    """
    if length <= window:
        return [0]
    if not 1 <= stride <= window:
        raise ValueError(f"`stride`={stride} must lie between 1 and the window of {window} cells.")
    return [*range(0, length - window, stride), length - window]


@lru_cache(maxsize=256)
def windows(size: Size, window: Size, stride: Size, wrap: bool = False) -> tuple[View, ...]:
    """All windows over latents of `size`, row by row; a window is never larger than the latents.

    With `wrap` they are those of a closed panorama: the columns wrap around and every column is covered equally often.

    Raises:
        ValueError: If `stride` leaves cells out; on a closed loop if it does not divide the width (coverage would be
            uneven) or the window is too wide.
    """
    height, width = min(window[0], size[0]), min(window[1], size[1])
    tops, lefts = window_starts(size[0], height, stride[0]), window_starts(size[1], width, stride[1])
    if wrap and (size[1] % stride[1] or window[1] > size[1]):
        raise ValueError(
            f"A closed loop of {size[1]} columns cannot be tiled evenly by windows of {window[1]} at a stride of "
            f"{stride[1]}: choose a width that is a multiple of the stride and not below the window."
        )
    columns = range(0, size[1], stride[1]) if wrap else lefts
    return tuple(View(top, left, height, width, wrap=wrap) for top in tops for left in columns)


@lru_cache(maxsize=256)
def lattices(size: Size, stride: Size) -> tuple[View, ...]:
    """The row_stride x column_stride interleaved lattices that together hold every cell exactly once.

    Sizes that the stride does not divide give lattices of unequal size; nothing is padded (DemoFusion, Sec. 3.4).
    """
    return tuple(
        View(top, left, -(-(size[0] - top) // stride[0]), -(-(size[1] - left) // stride[1]), *stride)
        for top in range(min(stride[0], size[0]))
        for left in range(min(stride[1], size[1]))
    )


def jitter(views: Iterable[View], size: Size, limit: Size, key: int) -> tuple[View, ...]:
    """Move every window by up to `limit` cells (rows, columns), never out of the latents (wrapped ones: around).

    Windows at a border stay there, as those that would leave are clamped: an interior window moves by
    U{-limit..limit}, and coverage holds as long as stride + 2 * limit <= window (DemoFusion's jitter without its
    zero padding, which shows the network cells that no noisy latent has).

    Args:
        views: Windows from `windows`.
        size: (height, width) of the latents.
        limit: Largest move in rows and in columns.
        key: Seed; the moves are a pure function of it.
    """
    views = tuple(views)
    generator = torch.Generator().manual_seed(key)
    spans = 2 * torch.tensor(limit) + 1
    moves = (torch.rand((len(views), 2), generator=generator, dtype=torch.float64) * spans).long() - torch.tensor(limit)
    return tuple(_moved(view, size, int(move[0]), int(move[1])) for view, move in zip(views, moves, strict=True))


def _moved(view: View, size: Size, down: int, right: int) -> View:
    def place(start: int, length: int, total: int, move: int) -> int:
        at_border = start in (0, total - length)
        return start if at_border else min(max(start + move, 0), total - length)

    top = place(view.top, view.height, size[0], down)
    left = (view.left + right) % size[1] if view.wrap else place(view.left, view.width, size[1], right)
    return view._replace(top=top, left=left)


@lru_cache(maxsize=64)
def feather(size: Size) -> torch.Tensor:
    """Blending weights (height, width) that fall linearly from the middle of a window to its borders, never to 0."""
    height, width = (1.0 - (torch.arange(n, dtype=torch.float64) - (n - 1) / 2).abs() / ((n + 1) / 2) for n in size)
    return height[:, None] * width[None, :]
