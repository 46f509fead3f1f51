"""Self-attention in shifted windows, on the outermost level of a UNet that has attention.

MSW-MSA of HiDiffusion (Zhang et al., ECCV 2024, arXiv 2311.17528, Sec. 3.3).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from seecoder.sampling.methods.hidiffusion.feature_sizes import Frames, size_recorder
from seecoder.sampling.path import Patch, uncompiled
from seecoder.sampling.step import Step
from seecoder.sampling.views import Size


class WindowAttention(Patch):
    """Self-attention of the outermost attention level in 2 x 2 windows, shifted by the step."""

    def __init__(self, unet: Any) -> None:
        blocks = [*unet.down_blocks, *list(unet.up_blocks)[::-1]]  # both lists by level
        levels = len(unet.down_blocks)
        attending = (i % levels for i, block in enumerate(blocks) if getattr(block, "attentions", None))
        chosen = blocks[min(attending, default=len(blocks)) :: levels]  # on the way down and up
        self._transformers = [entry for block in chosen for entry in getattr(block, "attentions", None) or ()]

    @contextmanager
    def active(self, step: Step, size: Size) -> Iterator[None]:
        """The network with window attention."""
        quarter = int(torch.randint(4, (), generator=torch.Generator().manual_seed(step.index)).item())
        with ExitStack() as stack:
            stack.enter_context(uncompiled())
            frames: Frames = {}
            for transformer in self._transformers:
                stack.callback(transformer.register_forward_pre_hook(size_recorder(frames)).remove)
                for block in transformer.transformer_blocks:
                    _divide(stack, block.attn1, transformer, frames, quarter)
            yield


def _divide(
    stack: ExitStack, attention: torch.nn.Module, transformer: torch.nn.Module, frames: Frames, quarter: int
) -> None:
    """Let an attention work on windows of its transformer's feature map until the stack is closed."""

    def split(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (to_windows(inputs[0], frames[transformer], quarter), *inputs[1:])

    def join(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return from_windows(output, frames[transformer], quarter)

    stack.callback(attention.register_forward_pre_hook(split).remove)
    stack.callback(attention.register_forward_hook(join).remove)


def to_windows(tokens: torch.Tensor, frame: Size, quarter: int) -> torch.Tensor:
    """Divide self-attention's tokens into windows.

    Args:
        tokens: (N, h*w, C), row by row.
        frame: (h, w) of the feature map.
        quarter: The map is rolled by so many quarters of a window first.

    Returns:
        (4*N, h*w/4, C): 2 x 2 windows; the tokens themselves if a side is odd.
    """
    height, width = frame
    if height % 2 or width % 2:
        return tokens
    values = tokens.reshape(-1, height, width, tokens.shape[-1])
    values = values.roll((-(height // 2 * quarter // 4), -(width // 2 * quarter // 4)), (1, 2))
    values = values.view(-1, 2, height // 2, 2, width // 2, tokens.shape[-1]).transpose(2, 3)
    return values.reshape(-1, height * width // 4, tokens.shape[-1])


def from_windows(tokens: torch.Tensor, frame: Size, quarter: int) -> torch.Tensor:
    """The inverse of `to_windows`."""
    height, width = frame
    if height % 2 or width % 2:
        return tokens
    values = tokens.reshape(-1, 2, 2, height // 2, width // 2, tokens.shape[-1]).transpose(2, 3)
    values = values.reshape(-1, height, width, tokens.shape[-1])
    values = values.roll((height // 2 * quarter // 4, width // 2 * quarter // 4), (1, 2))
    return values.reshape(-1, height * width, tokens.shape[-1])
