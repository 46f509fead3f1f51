"""Spatial control: which networks control a run (ControlNets, T2I-Adapters), what each sees, how much and when."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import MultiAdapter, MultiControlNetModel
from torch import nn

from seecoder.pipelines.inputs import Picture, control_pixels, one_each
from seecoder.pipelines.networks import HalvedOnDemand, bring_to_device
from seecoder.pipelines.request import Request
from seecoder.sampling.conditions import Control
from seecoder.sampling.methods.hidiffusion.feature_sizes import levels_of_features

# What makes the control of a number of results, for cells of so many pixels a side: (count, device, cell, notes).
Controller = Callable[[int, torch.device, int, list[str]], Control]


def controllers(controlnet: Any, adapter: Any, request: Request) -> list[Controller]:
    """Give every ControlNet and T2I-Adapter of a pipeline its own picture, scale and span.

    Args:
        controlnet: The pipeline's: one, several in a `MultiControlNetModel`, or None.
        adapter: The pipeline's: one, several in a `MultiAdapter`, or None.
        request: The call.

    Raises:
        ValueError: A picture without a network or the other way round, or another number of entries than of networks.
    """
    nets = _members("control_image", request.control_image, "controlnet", controlnet)
    numbers = [
        one_each(name, getattr(request, name), len(nets))
        for name in ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end")
    ]
    found: list[Controller] = []
    for (net, image), scale, start, end in zip(nets, *numbers, strict=True):
        # As in diffusers: a net that says nothing of places (shuffle) is for the conditional branch alone.
        acts = {"span": (start, end), "positive_only": bool(net.config.get("global_pool_conditions"))}
        found.append(partial(_control, "ControlNet", partial(_control_residuals, net, controlnet, scale), image, acts))
    adapters = _members("adapter_image", request.adapter_image, "adapter", adapter)
    scales = one_each("adapter_conditioning_scale", request.adapter_conditioning_scale, len(adapters))
    return found + [
        partial(_control, "T2I-Adapter", partial(_adapter_features, network, adapter, scale), image, None)
        for (network, image), scale in zip(adapters, scales, strict=True)
    ]


def _control(
    name: str,
    network: Callable[..., Any],
    image: Picture | Sequence[Picture],
    acts: dict[str, Any] | None,
    count: int,
    device: torch.device,
    cell: int,
    notes: list[str],
) -> Control:
    """Read what a network sees, one picture or one for every result; without `acts` it looks at nothing else."""
    pixels, halved = control_pixels(image, count).to(device), HalvedOnDemand(network, name, notes)
    if acts is not None:
        return Control(pixels, halved, cell, **acts)
    return Control(pixels, _adapter_residuals, cell, prepare=lambda part: halved(part, torch.empty(0)))


def _members(argument: str, given: Any, part: str, owner: Any) -> list[tuple[Any, Any]]:
    """The networks of a part of the pipeline, each with its entry of an argument of the call."""
    if (given is None) != (owner is None):
        have, lack = (argument, part) if owner is None else (part, argument)
        raise ValueError(f"there is a `{have}` but no `{lack}`; one works only with the other.")
    if owner is None:
        return []
    if not isinstance(owner, (MultiControlNetModel, MultiAdapter)):
        return [(owner, given)]
    networks = list(owner.nets if isinstance(owner, MultiControlNetModel) else owner.adapters)
    if not isinstance(given, (list, tuple)) or len(given) != len(networks):
        raise ValueError(f"`{argument}` must be a list of {len(networks)} entries, one for every network of `{part}`.")
    return list(zip(networks, given, strict=True))


def _control_residuals(
    network: nn.Module, owner: nn.Module, scale: float, *inputs: torch.Tensor, **added: Any
) -> dict[str, Any]:
    """What a ControlNet adds at (latents, timestep, context, image); offloading moves its owner as a whole."""
    bring_to_device(owner)
    down, middle = network(*inputs, conditioning_scale=scale, return_dict=False, **added)
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


@torch.no_grad()  # the features do not depend on the latents, whose gradients a method may want
def _adapter_features(network: Any, owner: nn.Module, scale: float, image: torch.Tensor, *_: Any) -> dict[str, Any]:
    """What a T2I-Adapter adds for an image (N, 3, H, W); it looks at nothing else."""
    bring_to_device(owner)
    grey = image.mean(dim=1, keepdim=True) if network.config.in_channels == 1 else image  # one for sketches
    return {"down_intrablock_additional_residuals": [scale * values for values in network(grey)]}


def _adapter_residuals(*inputs: Any, **conditions: Any) -> dict[str, Any]:
    """What was made of the image, in lists of their own: the UNet empties them."""
    return {name: list(values) for name, values in inputs[-1].items()}


def check_adapter(unet: Any, cell: int, adapter: Any) -> None:
    """Refuse a T2I-Adapter, or several, whose features differ from a UNet's levels in width, or in size.

    A latent cell is `cell` pixels wide.

    Raises:
        ValueError: One has.
    """
    networks: list[Any] = list(adapter.adapters) if isinstance(adapter, MultiAdapter) else [adapter]
    widths, cells = list(unet.config.block_out_channels), [cell * 2**level for level in levels_of_features(unet)]
    for config in (network.config for network in networks):
        scales = (1, 1, 2, 2) if config.adapter_type == "full_adapter_xl" else (1, 2, 4, 8)
        found = [*config.channels][: len(widths)], [config.downscale_factor * scale for scale in scales][: len(widths)]
        if found != (widths, cells):
            raise ValueError(
                f"`adapter` gives {found[0]} channels at {found[1]} pixels a cell; this base's UNet wants {widths} at "
                f"{cells}. Use a T2I-Adapter of this base's family."
            )
