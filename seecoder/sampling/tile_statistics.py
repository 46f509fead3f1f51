"""Group normalisation in tiles with the statistics of the whole picture.

An autoencoder normalises by the mean and the deviation over all that it is given. A tile of sky has others than a tile
with a face, so tiles that are decoded on their own come out in tones of their own, and no blend at their joints hides
that. Here every group normalisation takes the statistics that it has for the whole picture, shrunk to the size of one
tile: one tile of work more. The idea is that of the fast mode of "Tiled VAE", an extension of the Stable Diffusion web
UI.

In the world, where one object stands on one background, tiles of half the side with norms of their own are off by 15.7
levels of 255 on average, with those of the whole by 0.9; what the shrinking costs grows with its factor (2, 4, 8: 0.9,
3.2, 5.0 levels; `scripts/bench_sampling --parts tiles`).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn import functional

__all__ = ["normalised_like", "shrunken"]


def shrunken(values: torch.Tensor, area: int, multiple: int = 1) -> torch.Tensor:
    """The whole picture in at most so many cells, every channel with the mean and the deviation that it has.

    Args:
        values: (N, C, H, W).
        area: Most cells of the result.
        multiple: Both sides of the result are multiples of this.

    Returns:
        (N, C, h, w) of the same aspect ratio, as far as `multiple` allows; the values themselves if they are few.
    """
    height, width = values.shape[-2:]
    share = math.sqrt(area / (height * width))
    if share >= 1.0:
        return values
    size = [max(multiple, int(side * share) // multiple * multiple) for side in (height, width)]
    full = values.to(_wide(values))
    small = functional.interpolate(full, size=size, mode="bicubic", antialias=True)
    deviation, mean = torch.std_mean(full, dim=(-2, -1), keepdim=True, correction=0)
    own_deviation, own_mean = torch.std_mean(small, dim=(-2, -1), keepdim=True, correction=0)
    return ((small - own_mean) * (deviation / own_deviation.clamp(min=1e-12)) + mean).to(values.dtype)


@contextmanager
def normalised_like(module: nn.Module, whole: Callable[[], object]) -> Iterator[None]:
    """Let all group normalisations of a module use the statistics of one call.

    Args:
        module: Whose `nn.GroupNorm` layers are meant; it comes back as it was.
        whole: Called once, without gradients; has to run the module on the input whose statistics are wanted, of one
            picture. Layers that it does not reach stay as they are.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, nn.GroupNorm)]
    found: dict[nn.GroupNorm, tuple[torch.Tensor, torch.Tensor]] = {}
    with ExitStack() as stack, torch.no_grad():
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(partial(_record, found)).remove)
        whole()
    try:
        for layer, affine in found.items():
            layer.forward = partial(_apply, *affine)
        yield
    finally:
        for layer in found:
            del layer.forward  # what is left is the method of the class


def _record(
    found: dict[nn.GroupNorm, tuple[torch.Tensor, torch.Tensor]], layer: nn.Module, inputs: tuple[torch.Tensor, ...]
) -> None:
    """Note the normalisation of this input as a scale and a shift for each channel, (N, C)."""
    if not isinstance(layer, nn.GroupNorm):
        raise TypeError(f"`layer`={type(layer).__name__} must be a GroupNorm.")
    groups = (
        inputs[0].to(_wide(inputs[0])).flatten(2).unflatten(1, (layer.num_groups, -1)).flatten(2)
    )  # (N, groups, rest)
    variance, mean = torch.var_mean(groups, dim=-1, correction=0)
    repeats = layer.num_channels // layer.num_groups
    scale = torch.rsqrt(variance + layer.eps).repeat_interleave(repeats, 1)
    mean = mean.repeat_interleave(repeats, 1)
    if layer.affine:
        scale = scale * layer.weight
    shift = -mean * scale
    found[layer] = (scale, shift + layer.bias if layer.affine else shift)


def _apply(scale: torch.Tensor, shift: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Values (N, C, ...) times a scale plus a shift for each channel, in float32 at least."""
    shape = (*scale.shape, *(1,) * (values.dim() - 2))
    return torch.addcmul(shift.view(shape), values, scale.view(shape)).to(values.dtype)


def _wide(values: torch.Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)
