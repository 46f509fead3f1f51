"""The arguments of a call of either pipeline: written, documented and checked once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch

from seecoder.call_rules import check_arguments
from seecoder.pipelines.bounded_memory import AUTOENCODER_MEMORY
from seecoder.pipelines.context.context_strength import ContextScale
from seecoder.pipelines.context.text import Text
from seecoder.pipelines.inputs import ControlPictures, ImageSize, Picture, Pictures, one_each
from seecoder.sampling.randomness import Generators
from seecoder.sampling.recipe import Method
from seecoder.sampling.views import Size


@dataclass(frozen=True)
class Request:
    """Make pictures from pictures. Arguments that only SDXL has are refused by the other family.

    The result has `images`, and `notes`: a sentence for everything that was not done as asked.

    Args:
        image: One picture (path, bytes, PIL image, array or tensor, as `seecoder.load_image` takes them); a list of
            pictures, each varied for itself; or, in place of a picture, an inner list or an `ImageSet`: several
            pictures that together make one context. `[[a, b], c]` gives two results, one of a and b, one of c.
        height: Of the result in pixels, a multiple of 8 (of the VAE's factor); None for the size of the UNet's
            training.
        width: Of the result in pixels, like `height`.
        method: How to sample above the native size: a method of `seecoder.sampling` such as `DemoFusion()`; a list
            of methods that compose; the name of one ("demofusion"); a preset, "auto", "fast", "balanced" or
            "best", which chooses by the size; None for plain sampling.
        num_inference_steps: Steps of one trajectory.
        timesteps: The timesteps themselves, noisiest first, for schedulers that take them; then
            `num_inference_steps` is not used.
        sigmas: The noise levels themselves, noisiest first and 0 last, for schedulers that take them.
        guidance_scale: None takes what the encoder records (2.0 where it records nothing); 1 and all below, as in
            diffusers, is none: it skips the unconditional pass and halves the time.
        guidance_rescale: Fraction in [0, 1] of the rescaled prediction (arXiv 2305.08891, Sec. 3.4).
        eta: DDIM's stochasticity in [0, 1].
        num_images_per_prompt: Results for every entry of `image`, next to each other.
        generator: One, or a list with one for every result. With a list every result is what it would be alone.
        latents: Unit-variance starting noise (N, C, h, w), drawn if None.
        context: (N, T, D) from `encode_context`, instead of `image`; for SDXL `pooled_context` goes with it.
        negative_context: (1 or N, T, D) in place of what stands for "unconditional", the encoder's own or zeros.
            One that is shorter than the context is followed by zeros.
        context_weights: One number >= 0 for every picture of an inner list.
        image_size: Pictures of more pixels than a square of this side are reduced to as many before they are
            encoded. "trained" is the side that the encoder was trained at; None encodes all at their own size, as
            the published code does.
        context_scale: Factor on the context (and SDXL's pooled vector). 0 is unconditional, 1 as encoded; above 1
            exaggerates. "style", "layout" or numbers by block (README of the pipelines)
            reach a part of the UNet, and leave the pooled vector as it is.
        image_mask: What counts of the pictures, white or painted on transparency: one mask for all, or a list with
            one (or None) for each entry of `image`; stretched over the picture.
        text: What the results should show beside the pictures: a text, or one for each entry of `image` (needs
            `from_base(..., text=True)`); or its embedding (1 or N, T, D), for SDXL (tokens, pooled vectors), for
            instance with weighted words.
        negative_text: What they should not show, in the same form; None is the empty text, for SDXL zeros.
        text_weight: None puts the tokens of pictures and text side by side; a number in [0, 1] is the text's part
            of their mean, token by token.
        start_image: A picture to redraw, of the result's aspect ratio, instead of starting from noise. DemoFusion
            without `strength` and mask enlarges it.
        strength: How much of `start_image` is redrawn: the fraction in (0, 1] of the steps that are made. At 1
            nothing of it is left. None is 0.8, and 1 with a mask. A method of several stages redraws the picture in
            its first.
        mask_image: What of `start_image` is redrawn: white (above one half) is, black stays pixel by pixel. Needed
            by inpainting bases; others have the rest of the picture put back after every step.
        mask_feather: Pixels around the mask over which the result fades into `start_image`; 0 is a hard edge.
        control_image: What the ControlNet sees: one picture, or one for every result. Of several ControlNets a
            list with such an entry for each.
        controlnet_conditioning_scale: Factor on its residuals; of several ControlNets one for all, or a list.
        control_guidance_start: Fraction of the trajectory, in [0, 1], at which control sets in; a list for several.
        control_guidance_end: Fraction of the trajectory, in [0, 1], at which control stops; a list for several.
        adapter_image: What the T2I-Adapter sees, in the same forms.
        adapter_conditioning_scale: Factor on its features; of several adapters one for all, or a list.
        ip_adapter_image: What the IP-Adapter sees: a picture, or a list with an entry for each adapter, of which an
            entry is a picture or a list of them. Needs the adapter's image encoder.
        ip_adapter_image_embeds: Embeddings in its place, as diffusers' pipelines take them: one tensor for each
            adapter, (rows, images, width), with guidance the negative rows first.
        cross_attention_kwargs: For the UNet's attention processors; `scale` is a factor on LoRAs, those in text
            encoders included.
        view_batch_size: Windows that go through the UNet at once; bounds the memory, not the result.
        autoencoder_memory: GiB that the autoencoder may take; what takes more is done in tiles, close to the whole
            but not equal, and noted. Infinity: always as a whole, as long as memory lasts.
        output_type: "pil", "np" (N, H, W, 3), "pt" (N, 3, H, W), both in [0, 1], or "latent".
        return_dict: False for a tuple of images and notes.
        callback_on_step_end: Called as `callback(pipe, step, timestep, tensors)` after every step. It may stop the
            run with `pipe._interrupt = True`, set `pipe._guidance_scale` (1 and below ends the guidance), and change
            the tensors: the run goes on with what it writes into `tensors` or returns in a dictionary. Latents have
            the size of the running stage, contexts a row for every result; shapes stay.
        callback_on_step_end_tensor_inputs: What it is shown of "latents", "context", "negative_context", which it may
            change, and of "prompt_embeds", "add_text_embeds", "add_time_ids", "image", as stock pipelines have them.
        callback_on_stage_end: Called as `callback(pipe, stage, images)` after every stage of a method that has
            several, but for the last: a `seecoder.sampling.StageEnd`, and its result in the form of `output_type`.
        pooled_context: For SDXL alone, as are those below: (N, 1280) from `encode_context`, with `context`.
        negative_pooled_context: (1 or N, 1280) in place of the zeros that stand for "unconditional".
        original_size: (height, width) of the time ids; None for the size of the result.
        crops_coords_top_left: (top, left) of the time ids; windows add their own corner.
        target_size: (height, width) of the time ids; None for the size of the result.

    Raises:
        ImageError: A picture that cannot be read.
        ValueError: An argument that does not fit; nothing has been computed then.
        RuntimeError: NaN that a decode in float32 did not cure, or no memory left.
    """

    image: Pictures | None = None
    height: int | None = None
    width: int | None = None
    _: KW_ONLY
    method: Method | Sequence[Method | str] | str | None = None
    num_inference_steps: int = 50
    timesteps: Sequence[float] | None = None
    sigmas: Sequence[float] | None = None
    guidance_scale: float | None = None
    guidance_rescale: float = 0.0
    eta: float = 0.0
    num_images_per_prompt: int = 1
    generator: Generators = None
    latents: torch.Tensor | None = None
    context: torch.Tensor | None = None
    negative_context: torch.Tensor | None = None
    context_weights: Sequence[float] | None = None
    image_size: ImageSize = "trained"
    context_scale: ContextScale = 1.0
    image_mask: Picture | Sequence[Picture | None] | None = None
    text: Text | None = None
    negative_text: Text | None = None
    text_weight: float | None = None
    start_image: Picture | None = None
    strength: float | None = None
    mask_image: Picture | None = None
    mask_feather: int = 0
    control_image: ControlPictures | None = None
    controlnet_conditioning_scale: float | Sequence[float] = 1.0
    control_guidance_start: float | Sequence[float] = 0.0
    control_guidance_end: float | Sequence[float] = 1.0
    adapter_image: ControlPictures | None = None
    adapter_conditioning_scale: float | Sequence[float] = 1.0
    ip_adapter_image: ControlPictures | None = None
    ip_adapter_image_embeds: Sequence[torch.Tensor] | None = None
    cross_attention_kwargs: Mapping[str, Any] | None = None
    view_batch_size: int = 16
    autoencoder_memory: float = AUTOENCODER_MEMORY
    output_type: str = "pil"
    return_dict: bool = True
    callback_on_step_end: Callable[..., Mapping[str, Any] | None] | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",)
    callback_on_stage_end: Callable[..., None] | None = None
    pooled_context: torch.Tensor | None = None
    negative_pooled_context: torch.Tensor | None = None
    original_size: Size | None = None
    crops_coords_top_left: Size = (0, 0)
    target_size: Size | None = None

    def __post_init__(self) -> None:
        check_arguments(vars(self))
        spans = {name: getattr(self, name) for name in ("control_guidance_start", "control_guidance_end")}
        count = max(len(value) if isinstance(value, Sequence) else 1 for value in spans.values())
        for start, end in zip(*[one_each(name, value, count) for name, value in spans.items()], strict=True):
            if start > end:
                raise ValueError(f"`control_guidance_start`={start} must not lie after `control_guidance_end`={end}.")
        if self.context is not None and self.context_weights is not None:
            raise ValueError("`context_weights` have no effect on a ready `context`; leave them out.")
        if self.context is not None and self.image_mask is not None:
            raise ValueError("`image_mask` has no effect on a ready `context`; leave it out.")
        if len(self.schedule) > 1:
            raise ValueError("`timesteps` and `sigmas` contradict each other; give one of them.")

    @property
    def schedule(self) -> dict[str, list[float]]:
        """`timesteps` or `sigmas` by name; empty where the scheduler spaces its steps itself."""
        given = {"timesteps": self.timesteps, "sigmas": self.sigmas}
        return {name: list(values) for name, values in given.items() if values is not None}
