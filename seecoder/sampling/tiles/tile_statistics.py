"""Group normalisation in tiles with the statistics of the whole picture.

An autoencoder normalises by the mean and the standard deviation over all that it is given. A tile of sky has others
than a tile with a face, so tiles that are decoded on their own come out in tones of their own, and no blend at their
joints hides that. Here every group normalisation takes the statistics that it has for the whole picture, shrunk to the
size of one tile: one tile of work more. The idea is that of the fast mode of "Tiled VAE", an extension of the Stable
Diffusion web UI.

Kept in place of diffusers' tiled decoding, whose tiles have norms of their own: in the world tiles of half the side are
then off by 15.7 levels of 255 on average, with the norms of the whole by 0.9. What the shrinking costs grows with its
factor (2, 4, 8: 0.9, 3.2, 5.0 levels; `python -m tests.behaviour.sampling.tile_errors`).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_MIN_SIDE = 16  # cells that a side keeps: statistics of fewer are those of the padding


def shrunken(values: torch.Tensor, area: int, multiple: int = 1) -> torch.Tensor:
    """The whole picture in at most so many cells, every channel with the mean and the standard deviation that it has.

    Args:
        values: (N, C, H, W).
        area: Most cells of the result, as long as no side comes below 16 times `multiple`.
        multiple: Both sides of the result are multiples of this.

    Returns:
        (N, C, h, w) of the same aspect ratio, as far as `multiple` and narrow sides allow; the values themselves if
        they are few.
    """
    height, width = values.shape[-2:]
    fraction = math.sqrt(area / (height * width))
    if fraction >= 1.0:
        return values
    smallest = [min(side, _MIN_SIDE * multiple) for side in (height, width)]
    size = [
        max(int(side * fraction), low) // multiple * multiple
        for side, low in zip((height, width), smallest, strict=True)
    ]
    longer = int(width > height)
    size[longer] = max(smallest[longer], min(size[longer], area // size[1 - longer])) // multiple * multiple
    full = values.to(_wide(values))
    small = functional.interpolate(full, size=size, mode="bicubic", antialias=True)
    std, mean = torch.std_mean(full, dim=(-2, -1), keepdim=True, correction=0)
    own_std, own_mean = torch.std_mean(small, dim=(-2, -1), keepdim=True, correction=0)
    return ((small - own_mean) * (std / own_std.clamp(min=1e-12)) + mean).to(values.dtype)


@contextmanager
def normalised_like(whole: Callable[[], object]) -> Iterator[None]:
    """Let group normalisations use the statistics of one call.

    The functional form is intercepted, and no module is touched: weights may be brought over by hooks, call by call.
    Compiled networks run as they were written meanwhile.

    Args:
        whole: Called once, without gradients: runs the network on the one picture whose statistics are wanted. What
            runs inside the block must make the same calls in the same order, as often as it likes.
    """
    with torch.compiler.set_stance("force_eager"):
        noting = _Noting()
        with torch.no_grad(), noting:
            whole()
        with _Using(noting.found):
            yield


class _Statistics(NamedTuple):
    """Of one call: mean and reciprocal standard deviation of every group, (N, groups)."""

    mean: torch.Tensor
    reciprocal: torch.Tensor


class _Noting(TorchFunctionMode):
    """Notes the statistics of every group normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[_Statistics] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is functional.group_norm:
            values, groups, _, _, eps = _arguments(*args, **(kwargs or {}))
            grouped = values.to(_wide(values)).flatten(2).unflatten(1, (groups, -1)).flatten(2)
            variance, mean = torch.var_mean(grouped, dim=-1, correction=0)
            self.found.append(_Statistics(mean, torch.rsqrt(variance + eps)))
        return function(*args, **(kwargs or {}))


class _Using(TorchFunctionMode):
    """Gives group normalisations the statistics that were noted, call by call and over again."""

    def __init__(self, found: list[_Statistics]) -> None:
        super().__init__()
        self._found, self._next = found, 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not functional.group_norm or not self._found:
            return function(*args, **(kwargs or {}))
        statistics = self._found[self._next % len(self._found)]
        self._next += 1
        values, groups, weight, bias, _ = _arguments(*args, **(kwargs or {}))
        return _normalised(values, statistics, values.shape[1] // groups, weight, bias)


def _arguments(
    values: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, int, torch.Tensor | None, torch.Tensor | None, float]:
    """The arguments of `functional.group_norm`, named or not."""
    return values, groups, weight, bias, eps


def _normalised(
    values: torch.Tensor,
    statistics: _Statistics,
    channels: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Values (N, C, ...) with given statistics of groups of `channels`, in float32 at least."""
    scale = statistics.reciprocal.repeat_interleave(channels, 1)
    mean = statistics.mean.repeat_interleave(channels, 1)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = (*scale.shape, *(1,) * (values.dim() - 2))
    return torch.addcmul(shift.view(shape), values, scale.view(shape)).to(values.dtype)


def _wide(values: torch.Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)
