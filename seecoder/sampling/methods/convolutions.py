"""Convolutions that compute something else for a while, whatever holds their weights.

A patch replaces what a layer computes of its input, weight and bias, and nothing of the layer itself. The weight is the
one that the layer has when it is called: an offloaded weight arrives only then, a quantised one is unpacked only then.
Under a LoRA the first of its two layers is changed like the layer that it belongs to; the second looks at single cells
and both are linear, so that the sum is what the merged layer gives.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch.nn import functional

from seecoder.replacing import replaced

Pair = tuple[int, int]
Convolution = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]  # (inputs, weight, bias)


def convolutions_in(layer: torch.nn.Module, address: str) -> list[torch.nn.Conv2d]:
    """What a patch has to change of a layer: the layer itself, or under a LoRA the wrapped one and its first half.

    Args:
        layer: A convolution, or what an adapter or a quantisation has put in its place.
        address: What errors call it.

    Raises:
        ValueError: It computes convolutions where they cannot be reached.
    """
    found = [m for m in layer.modules() if isinstance(m, torch.nn.Conv2d) and max(m.kernel_size) > 1]
    is_adapted = bool(getattr(layer, "active_adapters", ())) and not (layer.merged or layer.disable_adapters)
    if not found or (is_adapted and not hasattr(layer, "lora_A")):
        raise ValueError(
            f"`unet`: its layer {address} is a {type(layer).__module__}.{type(layer).__name__}, which this method "
            "cannot change. Fuse adapters other than LoRA into the UNet, and leave its convolutions unquantised."
        )
    return found


def convolving(conv: torch.nn.Conv2d, convolution: Convolution) -> AbstractContextManager[None]:
    """A layer that computes another function for the duration of the block, and then comes back as it was."""
    return replaced(conv, _conv_forward=convolution)


def convolved(
    conv: torch.nn.Conv2d,
    inputs: torch.Tensor,
    kernel: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> torch.Tensor:
    """What a layer gives, in its way of padding, with another kernel, stride, padding and dilation (rows, columns)."""
    if conv.padding_mode != "zeros":
        both_sides = (padding[1], padding[1], padding[0], padding[0])
        inputs, padding = functional.pad(inputs, both_sides, mode=conv.padding_mode), (0, 0)
    return functional.conv2d(inputs, unpacked(kernel), bias, stride, padding, dilation, conv.groups)


def unpacked(weight: torch.Tensor) -> torch.Tensor:
    """A weight as plain numbers: quantised ones, torch's own or other libraries' subclasses, are dequantised."""
    is_plain = type(weight) in (torch.Tensor, torch.nn.Parameter) and not weight.is_quantized
    return weight if is_plain else weight.dequantize()
