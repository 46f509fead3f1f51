"""What SDXL's UNet reads beside the context: the pooled vector and the time ids.

Podell et al., "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis" (2023), section 2.2: six
numbers tell the size of the training picture, the corner of the crop taken from it, and the size of the result.
"""

from typing import Any

import torch
from torch import Tensor

Size = tuple[int, int]


def added_conditions(pooled: Tensor, original_size: Size, corner: Size, target_size: Size) -> dict[str, Any]:
    """Make the keyword arguments of an SDXL UNet.

    Args:
        pooled: (N, P), the pooled vector.
        original_size: (height, width) of the picture in pixels.
        corner: (top, left) of the crop in pixels.
        target_size: (height, width) of the result in pixels.

    Returns:
        `added_cond_kwargs` with `text_embeds` (N, P) and `time_ids` (N, 6). The ids are float32 whatever the vector's
        dtype: bfloat16 would round them.
    """
    numbers = [*original_size, *corner, *target_size]
    time_ids = torch.tensor(numbers, device=pooled.device, dtype=torch.float32).expand(len(pooled), -1)
    return {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": time_ids}}
