"""Frozen weights that are held in eight bits or on the CPU, and whole on the device only while a layer uses them.

A layer makes its weight when it runs, and makes it again when a gradient passes through it. Frozen, it needs nothing
else for that, so its inputs are not kept either. Eight bits are torchao's, with one scale for each output channel.

torchao's own layers, and the offloading of accelerate and diffusers, are for inference: autograd would keep the whole
weights of all layers on the device until the backward pass, or find them moved away.
"""

import importlib.util
from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input


def check_holding(options: Mapping[str, Any], accelerator: str) -> None:
    """Refuse what cannot be, before anything is loaded.

    Args:
        options: Arguments of `SeeCoderStage`, of which `frozen_weights`, `offload` and `compiled` are looked at.
        accelerator: That of the run.

    Raises:
        ValueError: They contradict each other, or torchao or the device lacks the form.
    """
    form, on_mps = options.get("frozen_weights"), torch.backends.mps.is_available() and accelerator == "auto"
    if "unet" in (options.get("compiled") or ()) and (form or "unet" in (options.get("offload") or ())):
        raise ValueError(
            "`compiled`=unet must be left out with `frozen_weights` or `offload`, which change its layers."
        )
    if form == "float8" and (on_mps or accelerator == "mps"):
        raise ValueError(f"`frozen_weights`={form} does not exist on the device mps. Use int8.")
    if form is not None and importlib.util.find_spec("torchao") is None:
        raise ValueError(f"`frozen_weights`={form} has no torchao here. Install it (pip install 'seecoder[torchao]').")


def hold_weights(network: nn.Module, form: str | None, *, offload: bool) -> None:
    """Let the layers of a frozen network make their weights when they need them.

    Args:
        network: Its linear layers and convolutions are changed, in place.
        form: "int8", "float8", or None for weights as they are.
        offload: Weights and biases of these layers stay where they are now, wherever the network moves.
    """
    for layer in held_layers(network):
        if form is not None:
            torchao = importlib.import_module("torchao.quantization")
            cls = {"int8": torchao.Int8Tensor, "float8": torchao.Float8Tensor}[form]
            values = cls.from_hp(layer.weight.detach(), granularity=torchao.PerAxis(0))
            layer.weight = nn.Parameter(values, requires_grad=False)
        if offload:
            layer._apply = MethodType(lambda layer, *_, **__: layer, layer)
        layer.forward = MethodType(lambda layer, inputs: _Held.apply(inputs, layer), layer)


def held_layers(network: nn.Module) -> list[Any]:
    """Layers whose weights can be held: nearly all that a UNet or an autoencoder has."""
    return [layer for layer in network.modules() if type(layer) in (nn.Linear, nn.Conv2d)]


def held_bytes(network: nn.Module, form: str | None, *, offload: bool) -> int:
    """Count what weights will take of the device when `hold_weights` is given the same, the largest one made included.

    The network may be on any device, also "meta".
    """
    total, largest = sum(weight.nbytes for weight in network.parameters()), 0
    for layer in held_layers(network) if form or offload else ():
        weight, row = layer.weight, 5 if form == "int8" else 4  # bytes of a scale, and of a zero point
        here = 0 if offload else weight.nbytes if form is None else weight.numel() + len(weight) * row
        total += here - weight.nbytes - (0 if layer.bias is None or not offload else layer.bias.nbytes)
        largest = max(largest, 2 * weight.nbytes)
    return total + largest


def _whole(weight: Any, device: torch.device) -> Tensor:
    """A weight on a device, of full precision and in the layout in which convolutions are fastest."""
    weight = weight.to(device)
    whole = weight if type(weight) in (Tensor, nn.Parameter) else weight.dequantize()
    return whole.contiguous(memory_format=torch.channels_last) if whole.ndim == 4 else whole


class _Held(torch.autograd.Function):
    """A frozen layer that keeps nothing for its backward pass but the shape of its input."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: Any) -> Tensor:
        ctx.layer, ctx.shape = layer, inputs.shape
        weight = _whole(layer.weight, inputs.device)
        bias = None if layer.bias is None else layer.bias.to(inputs.device)
        if isinstance(layer, nn.Linear):
            return F.linear(inputs, weight, bias)
        return F.conv2d(inputs, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,), layer = gradients, ctx.layer
        weight = _whole(layer.weight, gradient.device).to(gradient.dtype)
        if isinstance(layer, nn.Linear):
            return gradient @ weight, None
        options = (layer.stride, layer.padding, layer.dilation, layer.groups)
        return conv2d_input(ctx.shape, weight, gradient, *options), None
