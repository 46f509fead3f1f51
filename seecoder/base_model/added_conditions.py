"""What some UNets read beside the context: SDXL's a pooled vector and time ids, distilled ones the guidance scale.

Podell et al., "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis" (2023), section 2.2: six
numbers tell the size of the training picture, the corner of the crop taken from it, and the size of the result.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor


def added_conditions(pooled: Tensor, time_ids: Tensor | Sequence[int]) -> dict[str, Any]:
    """Make the keyword arguments of an SDXL UNet.

    Args:
        pooled: (N, P), the pooled vector.
        time_ids: (height, width) of the picture, (top, left) of the crop and (height, width) of the result, in pixels:
            six numbers for all pictures, or (N, 6).

    Returns:
        `added_cond_kwargs` with `text_embeds` (N, P) and `time_ids` (N, 6). The ids are float32 whatever the vector's
        dtype: bfloat16 would round them.
    """
    ids = torch.as_tensor(time_ids, dtype=torch.float32, device=pooled.device)
    return {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids.expand(len(pooled), -1)}}


def guidance_embedding(unet: Any, guidance_scale: float) -> Tensor | None:
    """Embed the guidance scale for a UNet that was distilled to it, as latent consistency models are.

    Luo et al., "Latent Consistency Models" (2023), section 4.3. Such a UNet is asked once a step, without guidance.

    Args:
        unet: The UNet; its configuration says how wide the embedding is.
        guidance_scale: What a plain UNet would be guided with.

    Returns:
        (1, width) on the CPU in the dtype of the UNet, its `timestep_cond`; None for a plain UNet.
    """
    width = unet.config.get("time_cond_proj_dim")
    if width is None:
        return None
    scale = torch.tensor([1000.0 * (guidance_scale - 1.0)])
    return get_timestep_embedding(scale, width, downscale_freq_shift=1.0).to(unet.dtype)
