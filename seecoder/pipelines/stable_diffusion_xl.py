"""Pictures from pictures with any Stable Diffusion XL base.

SDXL's UNet reads, besides a context of width 2048, a pooled vector (1280 wide) and six numbers, the *time ids*: the
size of the training picture, the corner of the crop taken from it, and the size of that crop. The pooled vector comes
from the encoder's `pooled_dim` head. The time ids are decided here once, for every method alike:

* original and target size are the size asked for, in every stage (as DemoFusion has it);
* the corner is (0, 0) for the whole frame and for lattices, and the corner of the window, in pixels of its stage, for
  windows.

The unconditional branch gets a zero context, a zero pooled vector and the same time ids.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin

from seecoder.pipelines.base import ContextPipeline
from seecoder.pipelines.call import called_with
from seecoder.pipelines.context.contexts import Contexts
from seecoder.pipelines.context.text import TEXT_PARTS
from seecoder.pipelines.request import Request
from seecoder.sampling.conditions import AddedConditions
from seecoder.sampling.views import Size, View


class SeeCoderXLPipeline(ContextPipeline, StableDiffusionXLLoraLoaderMixin):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Vary pictures with any SDXL base; a SeeCoder takes the place of its text encoders.

    The encoder is one with `context_dim=2048, pooled_dim=1280`.

    Args:
        vae: The autoencoder.
        unet: The denoiser.
        scheduler: The schedule that the UNet was trained with; copied for every call.
        encoder: The SeeCoder; None if every call brings `context` and `pooled_context`.
        controlnet: Spatial control by one ControlNet, or by several in a list; None for none.
        adapter: Spatial control by one T2I-Adapter, or by several in a list; None for none.
        image_encoder: What an IP-Adapter sees pictures with; `load_ip_adapter` brings it.
        feature_extractor: What prepares them for it.

    Raises:
        ValueError: Parts that do not fit each other.
    """

    # Saved folders name the module where a class lives; the package is the stable name.
    __module__ = "seecoder.pipelines"
    unet_family = "sdxl"

    _text_parts: ClassVar[tuple[str, ...]] = TEXT_PARTS

    __call__ = called_with(Request)

    def upcasts_vae(self) -> bool:
        """SDXL's own VAE overflows in float16 and says so in its configuration."""
        return self.vae.dtype == torch.float16 and bool(getattr(self.vae.config, "force_upcast", False))

    def added_conditions(self, request: Request, contexts: Contexts, size: Size) -> AddedConditions:
        """The pooled vector and the time ids of every view, as this module's header says."""
        pooled: Any = contexts.pooled  # there is one: the call and the encoder were checked
        vectors = {"positive": pooled, "negative": contexts.negative_pooled}
        original, target = request.original_size or size, request.target_size or size
        top, left = request.crops_coords_top_left
        cell = self.vae_scale_factor

        def conditions(view: View, branch: str, latent_size: Size) -> Mapping[str, Any]:
            is_window = view.row_stride == view.column_stride == 1
            corner = (top + view.top * cell, left + view.left * cell) if is_window else (top, left)
            time_ids = pooled.new_tensor([[*original, *corner, *target]])
            return {"added_cond_kwargs": {"text_embeds": vectors[branch], "time_ids": time_ids}}

        return conditions
