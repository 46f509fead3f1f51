"""HiDiffusion: deep features kept at the size that the network knows, and self-attention in shifted windows.

Paper: Zhang et al., "HiDiffusion: Unlocking Higher-Resolution Creativity and Efficiency in Pretrained Diffusion
Models", ECCV 2024, arXiv 2311.17528. RAU-Net: for the first part of the trajectory one downsampler shrinks more than it
was trained to (a larger stride, dilated to match), and the upsampler on the same level brings the features back.
MSW-MSA: the self-attention of the outermost level with attention runs in 2 x 2 windows, shifted from step to step.

The step comes from the engine, never from counters inside modules, so an interrupted run leaves no state behind; the
shift is a function of the step, so it depends on nothing else.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from seecoder.sampling.guidance import ClassifierFree
from seecoder.sampling.parts import Guidance, Patch, Run, Step
from seecoder.sampling.unet_levels import num_levels
from seecoder.sampling.views import Size

_SDXL_LEVELS = 3

Frames = dict[torch.nn.Module, Size]


@dataclass(frozen=True)
class HiDiffusion:
    """Settings of HiDiffusion; None takes what is published for the scale.

    Attributes:
        level: Level below which features are kept small: its downsampler shrinks more (None: 1 for SDXL, else 0).
        shrink_tau: Share of the trajectory with small deep features (T1: 0.4; 0.7 from four times native on).
        full_shrink_tau: Share in which the whole scale is taken back, and not only a factor of 2 (T2: 0; 0.3).
        window_attention: Self-attention in windows; faster, and closer to the attention that was trained.
    """

    role: ClassVar[str] = "network"

    level: int | None = None
    shrink_tau: float | None = None
    full_shrink_tau: float | None = None
    window_attention: bool = True

    def patches(self, run: Run, view_size: Size) -> Mapping[str, Sequence[Patch]]:
        """The patches for views of this size.

        Raises:
            ValueError: If the run has no `unet`, or the level has no downsampler.
        """
        if run.unet is None:
            raise ValueError("HiDiffusion() changes layers of the network. Give sample() the `unet`.")
        levels = num_levels(run.unet)
        level = self.level if self.level is not None else int(levels == _SDXL_LEVELS and _is_sdxl(run.unet))
        if not 0 <= level < levels - 1:
            raise ValueError(f"`level`={level} has no downsampler; this UNet has them on levels 0 to {levels - 2}.")
        scale = max(view_size[0] / run.native_size[0], view_size[1] / run.native_size[1])
        late, early = (0.7, 0.3) if scale >= 3.5 else (0.4, 0.0)
        late = late if self.shrink_tau is None else self.shrink_tau
        early = early if self.full_shrink_tau is None else self.full_shrink_tau
        count = len(run.stepper)
        shrink = Shrink(run.unet, level, max(2, round(scale)), round(early * count), round(late * count))
        return {"main": [shrink, WindowAttention(run.unet)] if self.window_attention else [shrink]}

    def guidance(self, run: Run, view_size: Size) -> Guidance:
        """Ordinary guidance."""
        return ClassifierFree(run.guidance_scale, run.guidance_rescale)


class Shrink:
    """RAU-Net (Sec. 3.2): the downsampler of one level with f times its stride, its upsampler to the old size.

    Args:
        unet: A diffusers UNet.
        level: Whose downsampler shrinks more.
        factor: How much more at first; later 2.
        full_until: First step with a factor of 2.
        until: First step of the plain network.
    """

    def __init__(self, unet: Any, level: int, factor: int, full_until: int, until: int) -> None:
        self._downsamplers = [block.downsamplers[0] for block in unet.down_blocks[:-1]]
        self._upsamplers = [block.upsamplers[0] for block in unet.up_blocks[:-1]][::-1]  # by level, like the others
        self._conv: torch.nn.Conv2d = self._downsamplers[level].conv
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
        conv, sizes = self._conv, {}
        before = conv.stride, conv.dilation, conv.padding
        with ExitStack() as stack:
            for down, up in zip(self._downsamplers, self._upsamplers, strict=True):
                # Every upsampler returns to what its level had on the way down: halves of odd sizes are not doubles.
                stack.callback(down.register_forward_pre_hook(_remembering(sizes)).remove)
                stack.callback(up.register_forward_pre_hook(_returning(sizes, down)).remove)
            try:
                conv.stride = (conv.stride[0] * factor, conv.stride[1] * factor)
                conv.dilation = (conv.dilation[0] * factor, conv.dilation[1] * factor)
                conv.padding = (int(conv.padding[0]) * factor, int(conv.padding[1]) * factor)
                yield
            finally:
                conv.stride, conv.dilation, conv.padding = before


class WindowAttention:
    """MSW-MSA (Sec. 3.3): self-attention of the outermost attention level in 2 x 2 windows, shifted by the step."""

    def __init__(self, unet: Any) -> None:
        blocks = [*unet.down_blocks, *list(unet.up_blocks)[::-1]]  # both lists by level
        levels = len(unet.down_blocks)
        outermost = min(i % levels for i, block in enumerate(blocks) if getattr(block, "attentions", None))
        chosen = [blocks[outermost], blocks[levels + outermost]]
        self._transformers = [entry for block in chosen for entry in getattr(block, "attentions", None) or ()]

    @contextmanager
    def active(self, step: Step, size: Size) -> Iterator[None]:
        """The network with window attention."""
        quarter = int(torch.randint(4, (), generator=torch.Generator().manual_seed(step.index)).item())
        with ExitStack() as stack:
            frames: Frames = {}
            for transformer in self._transformers:
                stack.callback(transformer.register_forward_pre_hook(_remembering(frames)).remove)
                for block in transformer.transformer_blocks:
                    stack.enter_context(_windowed(block.attn1, transformer, frames, quarter))
            yield


def _remembering(frames: Frames) -> Callable[..., None]:
    """A hook that notes the (height, width) of what goes into a module."""

    def hook(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        frames[module] = (inputs[0].shape[-2], inputs[0].shape[-1])

    return hook


def _returning(frames: Frames, down: torch.nn.Module) -> Callable[..., tuple[Any, ...]]:
    """A hook that has an upsampler come out at the size that went into the downsampler of its level."""
    return lambda module, inputs: (inputs[0], frames[down])


@contextmanager
def _windowed(attention: torch.nn.Module, transformer: torch.nn.Module, frames: Frames, quarter: int) -> Iterator[None]:
    def split(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (to_windows(inputs[0], frames[transformer], quarter), *inputs[1:])

    def join(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return from_windows(output, frames[transformer], quarter)

    handles = attention.register_forward_pre_hook(split), attention.register_forward_hook(join)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def to_windows(tokens: torch.Tensor, frame: Size, quarter: int) -> torch.Tensor:
    """Tokens (N, h*w, C) -> (4*N, h*w/4, C), of a frame rolled by quarters of a window; odd frames stay whole."""
    height, width = frame
    if height % 2 or width % 2:
        return tokens
    values = tokens.view(-1, height, width, tokens.shape[-1])
    values = values.roll((-(height // 2 * quarter // 4), -(width // 2 * quarter // 4)), (1, 2))
    values = values.view(-1, 2, height // 2, 2, width // 2, tokens.shape[-1]).transpose(2, 3)
    return values.reshape(-1, height * width // 4, tokens.shape[-1])


def from_windows(tokens: torch.Tensor, frame: Size, quarter: int) -> torch.Tensor:
    """The inverse of `to_windows`."""
    height, width = frame
    if height % 2 or width % 2:
        return tokens
    values = tokens.view(-1, 2, 2, height // 2, width // 2, tokens.shape[-1]).transpose(2, 3)
    values = values.reshape(-1, height, width, tokens.shape[-1])
    values = values.roll((height // 2 * quarter // 4, width // 2 * quarter // 4), (1, 2))
    return values.reshape(-1, height * width, tokens.shape[-1])


def _is_sdxl(unet: Any) -> bool:
    return getattr(unet, "config", {}).get("cross_attention_dim") == 2048
