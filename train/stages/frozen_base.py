"""The frozen base model: autoencoder, UNet and noise schedule of any folder or repository in diffusers' form."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from data.shards.caching.moments import encode_moments as encode_moments

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Base:
    """A base model's parts; the text encoder is never loaded.

    Attributes:
        vae: Autoencoder.
        unet: Noise predictor.
        scheduler_config: Its noise schedule and what it predicts.
    """

    vae: Any
    unet: Any
    scheduler_config: Mapping[str, Any]


def load_base(source: str, dtype: str, vae_dtype: str) -> Base:
    """Load and freeze a base model.

    Args:
        source: A folder, or the name of a repository on the Hub ("owner/name").
        dtype: Name of the UNet's dtype, a key of `DTYPES`.
        vae_dtype: Name of the autoencoder's dtype.

    Raises:
        FileNotFoundError: The folder does not exist or lacks a part, or the repository cannot be reached.
        ValueError: A dtype is not known.
    """
    for name, value in (("dtype", dtype), ("vae_dtype", vae_dtype)):
        if value not in DTYPES:
            raise ValueError(f"`{name}`={value!r} is not known; accepted: {', '.join(DTYPES)}.")
    folder = Path(source)
    if folder.is_dir() or source.count("/") != 1:
        for part, file in (("vae", "config.json"), ("unet", "config.json"), ("scheduler", "scheduler_config.json")):
            if not (folder / part / file).is_file():
                raise FileNotFoundError(f"`base`={source} has no {part}/{file}; give a diffusers folder or owner/name.")
    try:
        vae: Any = AutoencoderKL.from_pretrained(source, subfolder="vae", torch_dtype=DTYPES[vae_dtype])
        unet: Any = UNet2DConditionModel.from_pretrained(source, subfolder="unet", torch_dtype=DTYPES[dtype])
        scheduler_config: Any = DDIMScheduler.load_config(source, subfolder="scheduler")
    except OSError as error:
        raise FileNotFoundError(
            f"`base`={source} could not be loaded ({error}). Give a diffusers folder, or the name of a repository that "
            "this machine can reach."
        ) from error
    for module in (vae, unet):
        module.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return Base(vae, unet, scheduler_config)


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Scaled latents to pixels in [0, 1], float32."""
    shift, scale = vae.config.get("shift_factor") or 0.0, vae.config["scaling_factor"]
    pixels = vae.decode((latents / scale + shift).to(vae.dtype)).sample
    return pixels.float().add(1).div(2).clamp(0, 1)


def size_condition(unet: Any, pooled: Tensor | None, height: int, width: int) -> dict[str, Any]:
    """What a UNet of the SDXL family wants beside the context; empty for others.

    Args:
        unet: The UNet.
        pooled: (N, pooled_dim) of the encoder.
        height: Of the training pictures, which are neither cut nor scaled for such a UNet.
        width: Likewise.

    Raises:
        ValueError: The UNet wants a pooled vector and the encoder has none.
    """
    if unet.config.get("addition_embed_type") != "text_time":
        return {}
    if pooled is None:
        raise ValueError("The base is of the SDXL family: its encoder needs `pooled_dim` (1280).")
    sizes = torch.tensor([height, width, 0, 0, height, width], device=pooled.device, dtype=torch.float32)  # not rounded
    return {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes.expand(len(pooled), -1)}}
