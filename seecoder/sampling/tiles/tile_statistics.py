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
from contextlib import contextmanager, nullcontext
from itertools import cycle
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
    found: list[_Statistics] = []

    def note(
        values: torch.Tensor,
        groups: int,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        eps: float = 1e-5,
    ) -> torch.Tensor:
        grouped = values.to(_wide(values)).flatten(2).unflatten(1, (groups, -1)).flatten(2)
        variance, mean = torch.var_mean(grouped, dim=-1, correction=0)
        found.append(_Statistics(mean, torch.rsqrt(variance + eps)))
        return functional.group_norm(values, groups, weight, bias, eps)

    with torch.compiler.set_stance("force_eager"):
        with torch.no_grad(), _GroupNorm(note):
            whole()
        repeated = cycle(found)  # call by call and over again
        using = _GroupNorm(lambda *args, **named: _normalised(next(repeated), *args, **named))
        with using if found else nullcontext():
            yield


class _Statistics(NamedTuple):
    """Of one call: mean and reciprocal standard deviation of every group, (N, groups)."""

    mean: torch.Tensor
    reciprocal: torch.Tensor


class _GroupNorm(TorchFunctionMode):
    """Calls another function in place of `functional.group_norm`."""

    def __init__(self, other: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self._other = other

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        called = self._other if function is functional.group_norm else function
        return called(*args, **(kwargs or {}))


def _normalised(
    statistics: _Statistics,
    values: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Values (N, C, ...) with given statistics, in float32 at least; `eps` is in them already."""
    channels = values.shape[1] // groups
    scale = statistics.reciprocal.repeat_interleave(channels, 1)
    mean = statistics.mean.repeat_interleave(channels, 1)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = (*scale.shape, *(1,) * (values.dim() - 2))
    return torch.addcmul(shift.view(shape), values, scale.view(shape)).to(values.dtype)


def _wide(values: torch.Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)
