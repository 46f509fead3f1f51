"""What one call of a pipeline asks for, in one value."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from seecoder.images.loading import ENCODED_SIZE
from seecoder.pipelines.bounded_memory import AUTOENCODER_MEMORY

__all__ = ["CALLBACK_TENSORS", "Conditioning", "Request"]

CALLBACK_TENSORS = ("latents", "context", "negative_context")
Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class Request:
    """The arguments of a call that Stable Diffusion and SDXL have in common; see `SeeCoderPipeline.__call__`."""

    image: Any = None
    height: int | None = None
    width: int | None = None
    method: Any = None
    num_inference_steps: int = 50
    guidance_scale: float = 2.0
    guidance_rescale: float = 0.0
    eta: float = 0.0
    num_images_per_prompt: int = 1
    generator: Generators = None
    latents: torch.Tensor | None = None
    context: torch.Tensor | None = None
    negative_context: torch.Tensor | None = None
    context_weights: Sequence[float] | None = None
    image_size: int | None = ENCODED_SIZE
    context_scale: float = 1.0
    start_image: Any = None
    control_image: Any = None
    controlnet_conditioning_scale: float = 1.0
    control_guidance_start: float = 0.0
    control_guidance_end: float = 1.0
    cross_attention_kwargs: Mapping[str, Any] | None = None
    view_batch_size: int = 16
    autoencoder_memory: float = AUTOENCODER_MEMORY
    output_type: str = "pil"
    return_dict: bool = True
    callback_on_step_end: Callable[..., Mapping[str, Any]] | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",)
    callback_on_stage_end: Callable[..., None] | None = None
    # SDXL's own: what the pooled vector and the sizes of the added conditions are taken from.
    added: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Conditioning:
    """The contexts of a call, one row a picture to be made.

    Attributes:
        context: (B, T, D) on the UNet's device, in its dtype.
        negative_context: the same shape.
        pooled: (B, P) for SDXL, else None.
    """

    context: torch.Tensor
    negative_context: torch.Tensor
    pooled: torch.Tensor | None = None
