"""Networks with random weights at published and at toy sizes: time and memory do not depend on the weights."""

from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from seecoder.base_model.facts import STABLE_DIFFUSION_SCHEDULE
from seecoder.base_model.known_bases import base_sizes

_SDXL = base_sizes("stabilityai/stable-diffusion-xl-base-1.0")
assert _SDXL is not None  # it is in the table of released bases
SDXL_UNET: dict[str, Any] = dict(_SDXL.unet)
# SDXL's structure in miniature: its interface is what a test needs.
TOY_SDXL_UNET: dict[str, Any] = SDXL_UNET | {
    "sample_size": 16,
    "block_out_channels": (8, 16, 16),
    "transformer_layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 16,
    "projection_class_embeddings_input_dim": 16 + 6 * 8,
    "addition_time_embed_dim": 8,
    "norm_num_groups": 4,
}
SDXL_VAE_CHANNELS = (128, 256, 512, 512)


def stable_diffusion_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, sampled by DDIM."""
    return DDIMScheduler(**STABLE_DIFFUSION_SCHEDULE)


def autoencoder(channels: tuple[int, ...], **settings: Any) -> Any:
    """An autoencoder of four latent channels with one level for each entry of `channels`."""
    levels = len(channels)
    settings |= {
        "block_out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "latent_channels": 4,
    }
    return AutoencoderKL(**settings).eval().requires_grad_(False)


def unet(**settings: Any) -> Any:
    """A frozen UNet of these settings."""
    return UNet2DConditionModel(**settings).eval().requires_grad_(False)


def small_unet(channels: tuple[int, ...], side: int, groups: int = 32, width: int = 128) -> Any:
    """A UNet with attention on all levels but the first.

    Args:
        channels: Of each level.
        side: Native side in latent cells.
        groups: Of its group normalisation.
        width: Of a context token.
    """
    levels = len(channels)
    return unet(
        sample_size=side,
        layers_per_block=1,
        cross_attention_dim=width,
        attention_head_dim=4,
        block_out_channels=channels,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * (levels - 1)),
        up_block_types=(*["CrossAttnUpBlock2D"] * (levels - 1), "UpBlock2D"),
        norm_num_groups=groups,
    )
