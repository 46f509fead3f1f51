"""Gradients through a frozen network in float16, whose smallest number is far above the gradients of a training.

A mean over pictures, values and micro-batches makes gradients of 1e-8 and less, which float16 rounds to zero. So each
sample's gradient is scaled before it enters the network, and what comes out is scaled back in float32: loss scaling
(Micikevicius et al., "Mixed Precision Training", arXiv 1710.03740, section 3.2), for the frozen part alone.

The factor is a power of two, chosen from the sample's own gradient. So nothing is kept between steps, and a sample's
gradient depends neither on the others of its batch nor on the number of micro-batches or processes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_LARGEST = 4  # a sample's largest gradient enters the network as 2^3 to 2^4; float16 ends at 2^16
_LOWERED = (0, 8, 8, 8)  # where it still grows beyond that, it goes in again, lower by so many powers of two


def run_frozen(network: Callable[..., Tensor], inputs: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Run a frozen network whose inputs want gradients.

    Args:
        network: Takes the inputs, and treats samples apart.
        inputs: Float32 tensors (N, ...) that its output depends on.
        dtype: What the network computes in; they are cast to it.

    Returns:
        Its output (N, ...), in float32 where `dtype` is float16.
    """
    if dtype != torch.float16 or not torch.is_grad_enabled():
        return network(*(value.to(dtype) for value in inputs))
    return _Scaled.apply(network, *inputs)


class _Scaled(torch.autograd.Function):
    """A network in float16 with a backward pass of its own; it runs forward again only where gradients overflow."""

    @staticmethod
    def forward(ctx: Any, network: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.network, ctx.inputs = network, [value.detach().half().requires_grad_() for value in inputs]
        with torch.enable_grad():
            ctx.output = network(*ctx.inputs).float()
        return ctx.output.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        found: Sequence[Tensor] = ()
        largest = gradient.flatten(1).abs().amax(1)
        factors = torch.ldexp(torch.ones_like(largest), _LARGEST - largest.frexp().exponent.clamp(-100, 100))
        for lowered in _LOWERED:
            factors = factors / 2**lowered
            if lowered:
                with torch.enable_grad():
                    ctx.output = ctx.network(*ctx.inputs).float()
            scaled = gradient * factors.view(-1, *[1] * (gradient.ndim - 1))
            found = torch.autograd.grad(ctx.output, ctx.inputs, scaled)
            if all(bool(value.isfinite().all()) for value in found):
                break
        del ctx.output
        return None, *(value.float() / factors.view(-1, *[1] * (value.ndim - 1)) for value in found)
