"""Configurations of the released bases, so that a run can be planned before anything is downloaded."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from seecoder.base_model.facts import STABLE_DIFFUSION_SCHEDULE
from seecoder.base_model.loading import check_weights, load_config
from seecoder.lookup import is_local

_CROSS, _PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
_UP_CROSS, _UP_PLAIN = "CrossAttnUpBlock2D", "UpBlock2D"

_VAE: Mapping[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}
_UNETS: Mapping[str, Mapping[str, Any]] = {
    "Stable Diffusion 1.x": {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64},
    "Stable Diffusion 2.x": {
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
        "sample_size": 96,
    },
    "Stable Diffusion XL": {
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": (_PLAIN, _CROSS, _CROSS),
        "up_block_types": (_UP_CROSS, _UP_CROSS, _UP_PLAIN),
        "transformer_layers_per_block": (1, 2, 10),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
_NAMES = (  # what repositories of each family are called
    ("Stable Diffusion XL", r"stable-diffusion-xl|sdxl"),
    ("Stable Diffusion 2.x", r"stable-diffusion-2|stable-diffusion-v2"),
    ("Stable Diffusion 1.x", r"stable-diffusion-v1|stable-diffusion-1"),
)
_OTHER_UNETS = r"refiner|inpaint|depth|unclip|upscaler|lcm"  # beside these words in a name, the UNet is another one


@dataclass(frozen=True)
class BaseSizes:
    """Configurations that a base's parts are built from.

    Attributes:
        origin: Where they come from, for the reader of a plan.
        unet: Arguments of `UNet2DConditionModel`.
        vae: Arguments of `AutoencoderKL`.
        scheduler: Configuration of the scheduler.
    """

    origin: str
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any] = field(default_factory=lambda: STABLE_DIFFUSION_SCHEDULE)


def base_sizes(source: str, prediction_type: str | None = None, *, variant: str | None = None) -> BaseSizes | None:
    """Sizes of a base by its folder, or by its repository's name; None for a repository that is not known.

    Args:
        source: A folder, a file, or a repository on the Hub.
        prediction_type: What the UNet predicts; None for what the base says.
        variant: Of the weights, such as "fp16".

    Raises:
        FileNotFoundError: `source` is a folder without the configurations, or with pickles or some of several files for
            weights, or a path that does not exist.
        WeightsError: A file of weights is damaged.
    """
    if is_local(source):
        for part in ("unet", "vae"):
            check_weights(source, part, variant)
        parts = ("unet", "vae", "scheduler")
        unet, vae, scheduler = (load_config(source, part, prediction_type=prediction_type) for part in parts)
        return BaseSizes(f"configurations in {source}", unet, vae, scheduler)
    for family, pattern in _NAMES:
        if re.search(pattern, source.lower()) and not re.search(_OTHER_UNETS, source.lower()):
            own = "v_prediction" if family.endswith("2.x") and "base" not in source else "epsilon"
            scheduler = {**STABLE_DIFFUSION_SCHEDULE, "prediction_type": prediction_type or own}
            return BaseSizes(f"built-in table of {family}", _UNETS[family], _VAE, scheduler)
    return None
