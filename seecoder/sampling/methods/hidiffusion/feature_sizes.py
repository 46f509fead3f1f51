"""Sizes of a UNet's feature maps: kept smaller than trained below one level, and put back on the way up.

RAU-Net of HiDiffusion (Zhang et al., ECCV 2024, arXiv 2311.17528, Sec. 3.2).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from seecoder.sampling.methods.convolutions import convolutions_in, convolved, convolving
from seecoder.sampling.path import Patch, uncompiled
from seecoder.sampling.sizes import resized
from seecoder.sampling.step import Step
from seecoder.sampling.views import Size

Frames = dict[torch.nn.Module, Size]

_RESIDUALS = ("down_block_additional_residuals", "mid_block_additional_residual")
_FEATURES = "down_intrablock_additional_residuals"
_averaged = partial(resized, mode="area")


class Shrink(Patch):
    """Makes the features below one level small: its downsampler strides farther, its upsampler restores the size.

    ControlNets and T2I-Adapters work at the plain sizes; what they give is averaged down to the maps that it is added
    to.

    Args:
        unet: A diffusers UNet.
        level: The level whose downsampler shrinks more.
        factor: Factor on its stride at first; later 2.
        full_until: First step with a factor of 2.
        until: First step of the plain network.
    """

    def __init__(self, unet: Any, level: int, factor: int, full_until: int, until: int) -> None:
        self._downsamplers = [block.downsamplers[0] for block in unet.down_blocks[:-1]]
        self._upsamplers = [block.upsamplers[0] for block in unet.up_blocks[:-1]][::-1]  # by level, like the others
        self._convs = convolutions_in(self._downsamplers[level].conv, f"down.{level}.sampler.conv")
        self._unet, self._level = unet, level
        self._factor, self._full_until, self._until = factor, full_until, until

    def factor(self, index: int) -> int:
        """How much more than trained the features shrink at a step."""
        if index >= self._until:
            return 1
        return self._factor if index < self._full_until else 2

    @contextmanager
    def active(self, step: Step, size: Size) -> Iterator[None]:
        """The network with small deep features."""
        factor = self.factor(step.index)
        if factor == 1:
            yield
            return
        sizes: Frames = {}
        with ExitStack() as stack:
            stack.enter_context(uncompiled())
            stack.callback(self._unet.register_forward_pre_hook(self._residual_fitter(factor), with_kwargs=True).remove)
            for down, up in zip(self._downsamplers, self._upsamplers, strict=True):
                # Every upsampler returns to what its level had on the way down: halves of odd sizes are not doubles.
                stack.callback(down.register_forward_pre_hook(size_recorder(sizes)).remove)
                stack.callback(up.register_forward_pre_hook(_size_restorer(sizes, down)).remove)
            for conv in self._convs:
                stack.enter_context(convolving(conv, partial(_farther, conv, factor)))
            yield

    def _residual_fitter(self, factor: int) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
        """A hook of the UNet that brings what is added to its maps to their smaller sizes."""
        strides = [2 * factor if level == self._level else 2 for level in range(len(self._downsamplers))]

        def hook(
            module: torch.nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            down, mid, features = (keywords.get(name) for name in (*_RESIDUALS, _FEATURES))
            sample = inputs[0] if inputs else keywords["sample"]
            sizes = [(sample.shape[-2], sample.shape[-1])]
            for stride in strides:
                sizes.append((-(-sizes[-1][0] // stride), -(-sizes[-1][1] // stride)))
            fitted: dict[str, Any] = {}
            if down is not None and mid is not None:
                levels = levels_of_skips(self._unet)
                maps = tuple(_averaged(value, sizes[level]) for value, level in zip(down, levels, strict=True))
                fitted = dict(zip(_RESIDUALS, (maps, _averaged(mid, sizes[-1])), strict=True))
            if features is not None:
                places = [*levels_of_features(self._unet), len(sizes) - 1]  # what is left goes to the middle
                fitted[_FEATURES] = [_averaged(v, sizes[level]) for v, level in zip(features, places, strict=False)]
            return inputs, keywords | fitted

        return hook


def _farther(
    conv: torch.nn.Conv2d, factor: int, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """What a layer gives with a larger stride, and dilated and padded to match."""
    stride, padding, dilation = (
        (factor * int(pair[0]), factor * int(pair[1])) for pair in (conv.stride, conv.padding, conv.dilation)
    )
    return convolved(conv, inputs, weight, bias, stride=stride, padding=padding, dilation=dilation)


def levels_of_skips(unet: Any) -> Sequence[int]:
    """The level of every feature map that a UNet keeps on the way down, in the order of a ControlNet's residuals."""
    levels = [0]
    for level, block in enumerate(unet.down_blocks):
        levels += [level] * len(block.resnets) + [level + 1] * len(block.downsamplers or ())
    return levels


def levels_of_features(unet: Any) -> Sequence[int]:
    """The level of the map that a T2I-Adapter's features are added to, for every block on the way down.

    With attention that is the block's last map, and without it the one that leaves the block.
    """
    return [
        level + (not getattr(block, "has_cross_attention", False) and bool(block.downsamplers))
        for level, block in enumerate(unet.down_blocks)
    ]


def size_recorder(frames: Frames) -> Callable[..., None]:
    """A hook that notes the (height, width) of a module's input in `frames`."""

    def hook(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        frames[module] = (inputs[0].shape[-2], inputs[0].shape[-1])

    return hook


def _size_restorer(frames: Frames, down: torch.nn.Module) -> Callable[..., tuple[Any, ...]]:
    """A hook that makes an upsampler return to the size that went into the downsampler of its level."""
    return lambda module, inputs: (inputs[0], frames[down])
