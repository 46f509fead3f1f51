"""Pictures from pictures with any Stable Diffusion 1.x or 2.x base."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, ControlNetModel, SchedulerMixin, UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin

from seecoder.base_model.facts import family
from seecoder.encoder.model import SeeCoder
from seecoder.images.loading import ENCODED_SIZE
from seecoder.pipelines.base import ContextPipeline
from seecoder.pipelines.bounded_memory import AUTOENCODER_MEMORY
from seecoder.pipelines.conditioning import encode_pictures
from seecoder.pipelines.output import SeeCoderPipelineOutput
from seecoder.pipelines.request import Generators, Request

__all__ = ["SeeCoderPipeline"]


class SeeCoderPipeline(ContextPipeline, StableDiffusionLoraLoaderMixin):
    """Vary pictures with any SD 1.x / 2.x base; a SeeCoder takes the place of its text encoder.

        pipe = SeeCoderPipeline.from_base("folder-of-sd-1.5", encoder=SeeCoder.from_pretrained("folder-of-the-encoder"))
        images = pipe("cat.jpg", generator=torch.Generator().manual_seed(0)).images

    LoRA files load into the UNet (`load_lora_weights`, needs peft); parts for a text encoder are ignored, there is
    none.

    Args:
        vae: the autoencoder.
        unet: the denoiser.
        scheduler: the schedule that the UNet was trained with; copied for every call.
        encoder: the SeeCoder; None if every call brings its `context`.
        controlnet: spatial control; None for none.

    Raises:
        ValueError: parts that do not fit each other.
    """

    # Saved folders name the module where a class lives; the package is the stable name.
    __module__ = "seecoder.pipelines"

    text_encoder = None  # diffusers' LoRA loader asks for it
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
    ) -> torch.Tensor:
        """Encode pictures once, to use them often: `pipe(context=...)`, `save_context`, or any diffusers pipeline.

        Stock pipelines take the result as `prompt_embeds`, with zeros of its shape as `negative_prompt_embeds`.

        Args:
            image: as for `__call__`.
            context_weights: as for `__call__`.
            image_size: as for `__call__`.

        Returns:
            (N, T, D), one row an entry of `image`.

        Raises:
            ImageError: a picture that cannot be read.
            ValueError: weights that do not fit.
        """
        return encode_pictures(self.encoder, image, context_weights, self._execution_device, image_size)[0]

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
    ) -> SeeCoderPipelineOutput | tuple[Any, ...]:
        """Make pictures from pictures.

        Args:
            image: one picture (path, bytes, PIL image, array or tensor, see `seecoder.load_image`); a list of pictures,
                each varied for itself; or, in place of a picture, an inner list or an `ImageSet`: several pictures that
                together make one context. `[[a, b], c]` gives two results, one of a and b, one of c.
            height: of the result in pixels, a multiple of 8 (of the VAE's factor); None for the size of the UNet's
                training.
            width: the same.
            method: how to sample above the native size, from `seecoder.sampling`; a list of methods that compose; None
                for plain sampling.
            num_inference_steps: steps of one trajectory.
            guidance_scale: 1.5 to 2.5 suit a SeeCoder; exactly 1 skips the unconditional pass and halves the time.
            guidance_rescale: share in [0, 1] of the rescaled prediction (arXiv 2305.08891, Sec. 3.4).
            eta: DDIM's stochasticity in [0, 1].
            num_images_per_prompt: results for every entry of `image`, next to each other.
            generator: one, or a list with one for every result. With a list every result is what it would be alone.
            latents: unit-variance starting noise (N, C, h, w), drawn if None.
            context: (N, T, D) from `encode_context`, instead of `image`.
            negative_context: (1 or N, T, D) in place of the zeros that stand for "unconditional".
            context_weights: one number >= 0 for every picture of an inner list.
            image_size: pictures of more pixels than a square of this side are reduced to as many before they are
                encoded; None encodes all at their own size, as the published code does.
            context_scale: factor on the context. 0 is unconditional, 1 as encoded; above 1 exaggerates.
            start_image: a picture to enlarge instead of starting from noise, for methods that can (DemoFusion).
            control_image: what the ControlNet sees: one picture, or one for every result.
            controlnet_conditioning_scale: factor on its residuals.
            control_guidance_start: share of the trajectory, in [0, 1], at which control sets in.
            control_guidance_end: share at which it stops.
            cross_attention_kwargs: for the UNet's attention processors (a LoRA's `scale`).
            view_batch_size: windows that go through the UNet at once; bounds the memory, not the result.
            autoencoder_memory: GiB that the autoencoder may take; what takes more is done in tiles, close to the whole
                but not equal, and noted. Infinity: always as a whole, as long as memory lasts.
            output_type: "pil", "np" (N, H, W, 3), "pt" (N, 3, H, W), both in [0, 1], or "latent".
            return_dict: False for a tuple of images and notes.
            callback_on_step_end: called as `callback(pipe, step, timestep, tensors)` after every step. It may look, and
                stop the run with `pipe._interrupt = True`; it may not change the tensors.
            callback_on_step_end_tensor_inputs: of "latents", "context", "negative_context", what it is shown.
            callback_on_stage_end: called as `callback(pipe, stage, images)` after every stage of a method that has
                several, but for the last: a `seecoder.sampling.StageEnd`, and its result in the form of `output_type`.

        Returns:
            `images`, and `notes`: a sentence for everything that was not done as asked (see `SeeCoderPipelineOutput`).

        Raises:
            ImageError: a picture that cannot be read.
            ValueError: an argument that does not fit; nothing has been computed then.
            RuntimeError: NaN that a decode in float32 did not cure, or no memory left.
        """
        arguments = {name: value for name, value in locals().items() if name in Request.__dataclass_fields__}
        return self._run(Request(**arguments))

    def check_unet(self, unet: Any) -> None:
        """Refuse SDXL, and distilled UNets that embed the guidance scale."""
        if family(unet) != "sd":
            raise ValueError("this base's UNet wants SDXL's added conditions; use SeeCoderXLPipeline for it.")
        if unet.config.time_cond_proj_dim is not None:
            raise ValueError("this base's UNet embeds the guidance scale (a distilled model), which is not supported.")
        if unet.config.in_channels != unet.config.out_channels:
            raise ValueError(
                f"this base's UNet takes {unet.config.in_channels} channels and gives {unet.config.out_channels}: an "
                f"inpainting "
                "or image-editing model. Use its text-to-image sibling."
            )

    @classmethod
    def load_lora_into_text_encoder(cls, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """Leave a LoRA's text part out: there is no text encoder here."""
