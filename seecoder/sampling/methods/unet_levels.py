"""Addresses of a diffusers UNet's layers by block and by resolution level.

`down.1`      all layers of the second down block, its downsampler among them
`down.1.resnets`, `down.1.sampler`   a part of it
`mid`         the middle block
`up.0`        the first up block, its upsampler among them
`level.2`     the blocks that work at the third resolution, on the way down and up; with the middle at the last level
"""

from typing import Any

import torch

from seecoder.sampling.methods.convolutions import convolutions_in

_SAMPLERS = ("downsamplers", "upsamplers")
_CONVOLUTIONS = ("conv", "conv1", "conv2")  # of residual layers and samplers


def num_levels(unet: Any) -> int:
    """Number of resolutions of a UNet.

    Raises:
        TypeError: If it has no `down_blocks`, `mid_block` and `up_blocks`, as diffusers' UNets do.
    """
    if not all(hasattr(unet, name) for name in ("down_blocks", "mid_block", "up_blocks")):
        raise TypeError(
            f"`unet`={type(unet).__name__} has no down_blocks, mid_block and up_blocks. Give sample() the diffusers "
            "UNet that the denoiser calls."
        )
    return len(unet.down_blocks)


def spatial_convolutions(unet: Any) -> dict[str, torch.nn.Conv2d]:
    """All convolutions inside the blocks that look at neighbours, by address (`down.0.resnets.1.conv2`).

    Raises:
        ValueError: A layer that should be one of them cannot be changed.
    """
    num_levels(unet)
    blocks = {f"down.{place}": block for place, block in enumerate(unet.down_blocks)}
    if unet.mid_block is not None:
        blocks["mid"] = unet.mid_block
    blocks |= {f"up.{place}": block for place, block in enumerate(unet.up_blocks)}
    found = {}
    for address, block in blocks.items():
        for name, module in block.named_modules():
            if name.rpartition(".")[2] in _CONVOLUTIONS and not isinstance(module, torch.nn.AvgPool2d):
                convolutions_in(module, f"{address}.{name}")
            if isinstance(module, torch.nn.Conv2d) and max(module.kernel_size) > 1:
                for sampler in _SAMPLERS:
                    name = name.replace(f"{sampler}.0", "sampler")
                found[f"{address}.{name}"] = module
    return found


def blocks_of(pattern: str, levels: int) -> list[str]:
    """The block addresses that a pattern stands for: itself, or all blocks of a level."""
    if not pattern.startswith("level."):
        return [pattern]
    head, _, rest = pattern.removeprefix("level.").partition(".")
    level = int(head) if head.isascii() and head.isdigit() else levels
    names = [f"down.{level}", f"up.{levels - 1 - level}"] + (["mid"] if level == levels - 1 else [])
    return [f"{name}.{rest}" if rest else name for name in names] if 0 <= level < levels else []


def select(unet: Any, pattern: str) -> dict[str, torch.nn.Conv2d]:
    """The convolutions that a pattern matches.

    Raises:
        ValueError: If there are none, so that settings for another network do not pass unnoticed.
    """
    wanted = blocks_of(pattern, num_levels(unet))
    found = {
        address: conv
        for address, conv in spatial_convolutions(unet).items()
        if any(address == block or address.startswith(f"{block}.") for block in wanted)
    }
    if not found:
        raise ValueError(
            f"The pattern {pattern!r} matches no convolution of this UNet, which has {num_levels(unet)} levels. Use "
            "for instance level.1, down.1, down.1.sampler, mid or up.0."
        )
    return found
