"""How strongly each group of the UNet's blocks sees the pictures.

Blocks of different depth read different things out of a context. IP-Adapter's users know this as "style" and "layout"
(InstantStyle, arXiv 2404.02733, for SDXL); in the UNets of SD 1.x and 2.x coarse blocks draw structure and fine ones
appearance (P+, arXiv 2303.09522, Sec. 3.2). The README of this folder has a table of what each carries in the world.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from seecoder.base_model.facts import is_sdxl
from seecoder.call_rules import flat_scales
from seecoder.sampling.path import uncompiled

# A number for all blocks, "style" or "layout", or numbers by block as diffusers' `set_ip_adapter_scale` takes them:
# {"down": {"block_2": [0.0, 1.0]}, "mid": 0.5, "up": 1.0}. Blocks that are not named see no picture.
ContextScale = float | str | Mapping[str, Any]

_SDXL = {"style": {"up.block_0.1": 1.0}, "layout": {"down.block_2.1": 1.0}}
_LAYER = re.compile(r"(?:(down|up)_blocks\.(\d+)|(mid)_block)\.attentions\.(\d+)\..*attn2$")


def layer_strengths(unet: Any, scale: ContextScale) -> dict[nn.Module, float]:
    """Find the factor of every layer that reads the context.

    Args:
        unet: A UNet of diffusers.
        scale: What was asked for; a number is applied to the context itself and asks nothing of the layers.

    Returns:
        Factors by cross-attention layer, those of 1 left out.

    Raises:
        ValueError: A block that this UNet does not have, or that has no cross-attention.
    """
    if not isinstance(scale, str | Mapping):
        return {}
    layers: dict[nn.Module, list[str]] = {}
    for name, module in unet.named_modules():
        if match := _LAYER.search(name):
            block = "mid" if match[3] else f"{match[1]}.block_{match[2]}"
            layers[module] = [block.partition(".")[0], block, f"{block}.{match[4]}"]
    blocks = {addresses[1] for addresses in layers.values()}
    scales = _short_scales(scale, unet, blocks) if isinstance(scale, str) else dict(flat_scales(scale))
    known = {address for addresses in layers.values() for address in addresses}
    for address in scales:
        if address not in known:
            raise ValueError(
                f"`context_scale` names {address!r}, where this base reads no context. It does in "
                f"{', '.join(sorted(blocks))}."
            )
    # The most exact address counts.
    factors = {
        module: next((scales[address] for address in reversed(addresses) if address in scales), 0.0)
        for module, addresses in layers.items()
    }
    return {module: factor for module, factor in factors.items() if factor != 1.0}


def _short_scales(name: str, unet: Any, blocks: set[str]) -> Mapping[str, float]:
    """What "style" and "layout" stand for: SDXL's published layers; elsewhere fine and coarse blocks."""
    if is_sdxl(unet):
        return _SDXL[name]
    deepest = len(unet.down_blocks)
    levels = {"mid": deepest}
    for block in blocks - {"mid"}:
        side, _, place = block.partition(".block_")
        levels[block] = int(place) if side == "down" else deepest - 1 - int(place)
    coarsest = max(level for block, level in levels.items() if block != "mid")
    return {block: float((levels[block] >= coarsest) == (name == "layout")) for block in blocks}


@contextmanager
def context_strength(strengths: Mapping[nn.Module, float], num_tokens: int) -> Iterator[None]:
    """Scale what layers see of the pictures, and give them back as they were.

    Compiled networks run as they were written meanwhile: their graphs do not know the hooks.

    Args:
        strengths: From `layer_strengths`.
        num_tokens: How many tokens of the context, from its beginning, are the pictures'; a text's lie behind them.
    """
    with ExitStack() as stack:
        if strengths:
            stack.enter_context(uncompiled())
        for layer, factor in strengths.items():
            hook = partial(_scale_pictures, factor, num_tokens)
            stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _scale_pictures(
    factor: float, num_tokens: int, layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    given = keywords["encoder_hidden_states"]
    context, *others = given if isinstance(given, tuple) else (given,)  # an IP-Adapter adds pictures of its own
    context = torch.cat([context[:, :num_tokens] * factor, context[:, num_tokens:]], dim=1)
    return arguments, {**keywords, "encoder_hidden_states": (context, *others) if others else context}
