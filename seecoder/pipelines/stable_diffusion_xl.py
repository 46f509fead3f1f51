"""Pictures from pictures with any Stable Diffusion XL base.

SDXL's UNet reads, besides a context of width 2048, a pooled vector (1280 wide) and six numbers, the *time ids*: the
size of the training picture, the corner of the crop taken from it, and the size of that crop. The pooled vector comes
from the encoder's `pooled_dim` head. The time ids are decided here once, for every method alike:

* original and target size are the size asked for, in every stage (as DemoFusion has it);
* the corner is (0, 0) for the whole frame and for lattices, and the corner of the window, in pixels of its stage, for
  windows.

The unconditional branch gets a zero context, a zero pooled vector and the same time ids.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, ControlNetModel, SchedulerMixin, UNet2DConditionModel
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin

from seecoder.base_model.added_conditions import added_conditions
from seecoder.base_model.facts import pooled_width
from seecoder.encoder.model import SeeCoder
from seecoder.images.loading import ENCODED_SIZE
from seecoder.pipelines.base import ContextPipeline
from seecoder.pipelines.bounded_memory import AUTOENCODER_MEMORY
from seecoder.pipelines.conditioning import encode_pictures
from seecoder.pipelines.output import SeeCoderPipelineOutput
from seecoder.pipelines.request import Conditioning, Generators, Request
from seecoder.sampling import View

__all__ = ["SeeCoderXLPipeline"]

Size = tuple[int, int]


class SeeCoderXLPipeline(ContextPipeline, StableDiffusionXLLoraLoaderMixin):
    """Vary pictures with any SDXL base; a SeeCoder takes the place of its text encoders.

    The encoder is one with `context_dim=2048, pooled_dim=1280`.

    Args:
        vae: the autoencoder.
        unet: the denoiser.
        scheduler: the schedule that the UNet was trained with; copied for every call.
        encoder: the SeeCoder; None if every call brings `context` and `pooled_context`.
        controlnet: spatial control; None for none.

    Raises:
        ValueError: parts that do not fit each other.
    """

    # Saved folders name the module where a class lives; the package is the stable name.
    __module__ = "seecoder.pipelines"

    text_encoder = None  # diffusers' LoRA loader asks for them
    text_encoder_2 = None
    _lora_loadable_modules: ClassVar[list[str]] = ["unet"]

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        encoder: SeeCoder | None = None,
        controlnet: ControlNetModel | None = None,
    ) -> None:
        super().__init__(vae, unet, scheduler, encoder, controlnet)

    def encode_context(
        self, image: Any, context_weights: Sequence[float] | None = None, image_size: int | None = ENCODED_SIZE
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode pictures once, to use them often.

        Args:
            image: as for `__call__`.
            context_weights: as for `__call__`.
            image_size: as for `__call__`.

        Returns:
            Context (N, T, 2048) and pooled vectors (N, 1280): what stock pipelines call `prompt_embeds` and
            `pooled_prompt_embeds`.

        Raises:
            ImageError: a picture that cannot be read.
            ValueError: weights that do not fit, or an encoder without a pooled vector.
        """
        context, pooled = encode_pictures(self.encoder, image, context_weights, self._execution_device, image_size)
        if pooled is None:
            raise ValueError("the encoder has no pooled vector; SDXL needs one trained with `pooled_dim`.")
        return context, pooled

    def __call__(
        self,
        image: Any = None,
        height: int | None = None,
        width: int | None = None,
        *,
        method: Any = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 2.0,
        guidance_rescale: float = 0.0,
        eta: float = 0.0,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        context: torch.Tensor | None = None,
        negative_context: torch.Tensor | None = None,
        context_weights: Sequence[float] | None = None,
        image_size: int | None = ENCODED_SIZE,
        context_scale: float = 1.0,
        start_image: Any = None,
        control_image: Any = None,
        controlnet_conditioning_scale: float = 1.0,
        control_guidance_start: float = 0.0,
        control_guidance_end: float = 1.0,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        view_batch_size: int = 16,
        autoencoder_memory: float = AUTOENCODER_MEMORY,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., Mapping[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        callback_on_stage_end: Callable[..., None] | None = None,
        pooled_context: torch.Tensor | None = None,
        negative_pooled_context: torch.Tensor | None = None,
        original_size: Size | None = None,
        crops_coords_top_left: Size = (0, 0),
        target_size: Size | None = None,
    ) -> SeeCoderPipelineOutput | tuple[Any, ...]:
        """Make pictures from pictures; what is not listed here is as in `SeeCoderPipeline.__call__`.

        Args:
            image: as there.
            height: as there.
            width: as there.
            method: as there.
            num_inference_steps: as there.
            guidance_scale: as there.
            guidance_rescale: as there.
            eta: as there.
            num_images_per_prompt: as there.
            generator: as there.
            latents: as there.
            context: (N, T, 2048); `pooled_context` goes with it.
            negative_context: as there.
            context_weights: as there.
            image_size: as there.
            context_scale: as there; it scales the pooled vector, too.
            start_image: as there.
            control_image: as there.
            controlnet_conditioning_scale: as there.
            control_guidance_start: as there.
            control_guidance_end: as there.
            cross_attention_kwargs: as there.
            view_batch_size: as there.
            autoencoder_memory: as there.
            output_type: as there.
            return_dict: as there.
            callback_on_step_end: as there.
            callback_on_step_end_tensor_inputs: as there.
            callback_on_stage_end: as there.
            pooled_context: (N, 1280), with `context`.
            negative_pooled_context: (1 or N, 1280) in place of zeros.
            original_size: (height, width) of the time ids; None for the size of the result.
            crops_coords_top_left: (top, left) of the time ids; windows add their own corner.
            target_size: (height, width) of the time ids; None for the size of the result.

        Returns:
            `images` and `notes`.

        Raises:
            ImageError: a picture that cannot be read.
            ValueError: an argument that does not fit; nothing has been computed then.
            RuntimeError: NaN that a decode in float32 did not cure, or no memory left.
        """
        given = dict(locals())
        arguments = {name: given[name] for name in Request.__dataclass_fields__ if name in given}
        own = ("pooled_context", "negative_pooled_context", "original_size", "crops_coords_top_left", "target_size")
        if (context is None) != (pooled_context is None):
            raise ValueError("`context` and `pooled_context` go together; `encode_context` gives both.")
        return self._run(Request(**arguments, added={name: given[name] for name in own}))

    def check_unet(self, unet: Any) -> None:
        """Refuse anything but an SDXL base."""
        width = pooled_width(unet)
        if width is None:
            raise ValueError("this base's UNet is not SDXL's; use SeeCoderPipeline for SD 1.x and 2.x.")
        if width < 1:
            raise ValueError("this base's UNet wants other added conditions than SDXL's base model (a refiner?).")

    def upcasts_vae(self) -> bool:
        """SDXL's own VAE overflows in float16 and says so in its configuration."""
        return self.vae.dtype == torch.float16 and bool(getattr(self.vae.config, "force_upcast", False))

    def added_conditions(self, request: Request, conditioning: Conditioning, size: Size) -> Any:
        """The pooled vector and the time ids of every view, see this module's header."""
        added, pooled = request.added, conditioning.pooled
        if pooled is None or pooled.shape[-1] != pooled_width(self.unet):
            found = None if pooled is None else tuple(pooled.shape)
            raise ValueError(f"`pooled_context` has shape {found}; this base reads (N, {pooled_width(self.unet)}).")
        negative = added["negative_pooled_context"]
        negative = torch.zeros_like(pooled[:1]) if negative is None else negative.to(pooled)
        vectors = {"positive": pooled, "negative": negative}
        original, target = added["original_size"] or size, added["target_size"] or size
        top, left = added["crops_coords_top_left"]
        cell = self.vae_scale_factor

        def conditions(view: View, branch: str, latent_size: Size) -> Mapping[str, Any]:
            is_window = view.row_stride == view.column_stride == 1
            corner = (top + view.top * cell, left + view.left * cell) if is_window else (top, left)
            return added_conditions(vectors[branch], original, corner, target)

        return conditions

    @classmethod
    def load_lora_into_text_encoder(cls, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """Leave a LoRA's text parts out: there is no text encoder here."""
