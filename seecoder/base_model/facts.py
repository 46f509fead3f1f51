"""What is known about a base model from the configurations of its parts.

Every function takes a part (a diffusers UNet, autoencoder or scheduler) or the mapping that its configuration file
holds, so that a plan can ask before any weights are there: `unet` is a UNet or its configuration.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

from seecoder.checks import either, require, some_of, whole

_OUTDATED = r"0\.[0-8]\."  # diffusers that wrote the side of UNets as 32 where they were trained at 64
_SIDES = {768: 64, 2048: 128}  # of SD 1.x and of SDXL; SD 2.x, which reads 1024, was trained at 64 and at 96
_NUM_TIME_IDS = 6  # what SDXL's UNet is told of sizes: those of the picture, the crop's corner and the target

# Stable Diffusion's released schedule; the text of the Prompt-Free Diffusion paper says 8.5e-5, which no released
# model uses.
STABLE_DIFFUSION_SCHEDULE: Mapping[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def config_of(part: Any) -> Mapping[str, Any]:
    """Give the configuration of a part; empty for a network that has none."""
    return part if isinstance(part, Mapping) else getattr(part, "config", {})


def is_sdxl(unet: Any) -> bool:
    """Say whether a UNet reads a pooled vector and time ids beside the context, as those of the SDXL family do.

    Args:
        unet: A UNet or its configuration; anything without a configuration is not SDXL's.
    """
    return config_of(unet).get("addition_embed_type") == "text_time"


def family(unet: Any) -> Literal["sd", "sdxl"]:
    """Give the family of a UNet.

    Returns:
        "sdxl", or "sd" for Stable Diffusion 1.x and 2.x, which differ in the width of the context alone.

    Raises:
        ValueError: The UNet reads something else beside the context, as Kandinsky's does.
    """
    added = config_of(unet).get("addition_embed_type")
    if added is not None and not is_sdxl(unet):
        raise ValueError(
            f"`addition_embed_type`={added!r} of the base's UNet must be null (SD 1.x, 2.x) or 'text_time' (SDXL). "
            "Use a base of one of these families."
        )
    return "sdxl" if is_sdxl(unet) else "sd"


def context_width(unet: Any) -> int:
    """Give the width of the context that a UNet reads: 768 for SD 1.x, 1024 for SD 2.x, 2048 for SDXL.

    Raises:
        ValueError: Its blocks read different widths, or none.
    """
    width = config_of(unet).get("cross_attention_dim")
    widths = {width} if isinstance(width, int) else set(width or ())
    if len(widths) != 1:
        raise ValueError(f"`cross_attention_dim`={width} of the base's UNet must be one width. Use another base.")
    return int(widths.pop())


def pooled_width(unet: Any) -> int | None:
    """Give the width of the pooled vector that a UNet reads beside the context: 1280 for SDXL, None for SD 1.x and 2.x.

    SDXL's UNet embeds each of the six time ids in `addition_time_embed_dim` numbers and joins these to the vector.
    """
    if not is_sdxl(unet):
        return None
    config = config_of(unet)
    return config["projection_class_embeddings_input_dim"] - _NUM_TIME_IDS * config["addition_time_embed_dim"]


def reads_mask(unet: Any) -> bool:
    """Say whether a UNet is an inpainting one: beside the latents it reads a mask and the latents of what is kept."""
    config = config_of(unet)
    return config.get("in_channels", 4) == 2 * config.get("out_channels", 4) + 1


def native_size(unet: Any, default: tuple[int, int] | None = None) -> tuple[int, int]:
    """Give the (height, width) in latent cells that a UNet was trained at.

    As in diffusers' pipelines a side below 64 in a configuration from before diffusers 0.9 means 64. Where there is no
    side it is that of the family, which the width of the context tells.

    Args:
        unet: A UNet or its configuration, which holds one side, or both, or none.
        default: What to give where nothing tells; None for an error.

    Raises:
        ValueError: The side is no whole number from 1 up, or there is none, no default, and no family that tells it.
    """
    config = config_of(unet)
    width = config.get("cross_attention_dim")
    side = config.get("sample_size") or _SIDES.get(width if isinstance(width, int) else 0, default)
    if side is None:
        raise ValueError(
            "`sample_size`=None of the base's UNet must be the height and width in latent cells that it was trained "
            "at. Set it in unet/config.json (64 is 512 pixels), or give `height` and `width` and no method."
        )
    rule = either(whole(1), some_of(whole(1), "two of them", minimum=2, maximum=2))
    require("sample_size", side, rule, owner="the base's UNet")
    if has_outdated_size(unet):
        side = 64
    return (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))


def has_outdated_size(unet: Any) -> bool:
    """Say whether diffusers takes the side in a UNet's configuration for 64: below that, from before version 0.9."""
    config = config_of(unet)
    side, version = config.get("sample_size"), str(config.get("_diffusers_version", ""))
    return isinstance(side, int) and side < 64 and re.match(_OUTDATED, version) is not None


def pixels_per_cell(vae: Any) -> int:
    """Give how many pixels of a side one latent cell covers: every level of the autoencoder but the last halves sides.

    Args:
        vae: An autoencoder or its configuration; diffusers' default is a single level.
    """
    return 2 ** (len(config_of(vae).get("block_out_channels", (64,))) - 1)
