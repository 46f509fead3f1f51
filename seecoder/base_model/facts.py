"""What a UNet's configuration says about the contexts and sizes that it was trained with."""

from typing import Any

__all__ = ["context_width", "native_size", "pooled_width"]

_NUM_TIME_IDS = 6


def context_width(unet: Any) -> int:
    """Give the width of the context that a UNet reads.

    Args:
        unet: a `UNet2DConditionModel`.

    Raises:
        ValueError: its blocks read different widths.
    """
    width = unet.config.cross_attention_dim
    widths = {width} if isinstance(width, int) else set(width or ())
    if len(widths) != 1:
        raise ValueError(f"the UNet's `cross_attention_dim`={width}; a base that reads one context width is needed.")
    return int(widths.pop())


def native_size(unet: Any) -> tuple[int, int]:
    """Give the (height, width) in latent cells that a UNet was trained at.

    Args:
        unet: a `UNet2DConditionModel`; its configuration holds one side, or both.
    """
    side = unet.config.sample_size
    return (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))


def pooled_width(unet: Any) -> int:
    """Give the width of the pooled vector that an SDXL UNet reads.

    Args:
        unet: a `UNet2DConditionModel` with `addition_embed_type="text_time"`.
    """
    return unet.config.projection_class_embeddings_input_dim - _NUM_TIME_IDS * unet.config.addition_time_embed_dim
