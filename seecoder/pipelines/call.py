"""One call from beginning to end: validate, encode, sample, decode."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn import functional

from seecoder.base_model.facts import native_size
from seecoder.images.loading import load_image
from seecoder.pipelines.autoencoding import decode_latents, in_float32, vae_decoder, vae_encoder
from seecoder.pipelines.conditioning import condition
from seecoder.pipelines.inputs import check_numbers, check_size, check_tensors
from seecoder.pipelines.networks import HalvedOnDemand, control_residuals, unet_denoiser
from seecoder.pipelines.output import SeeCoderPipelineOutput
from seecoder.pipelines.request import CALLBACK_TENSORS, Conditioning, Request
from seecoder.sampling import Control, Progress, StageEnd, sample
from seecoder.sampling.composition import compose

__all__ = ["generate"]

_ASPECT_TOLERANCE = 0.05  # a start picture may be stretched by this much without a word


class _Interrupted(Exception):
    """Ends a run whose `interrupt` was set by a callback."""


def generate(pipe: Any, request: Request) -> SeeCoderPipelineOutput:
    """Run a request.

    Args:
        pipe: a `ContextPipeline`.
        request: the call.

    Returns:
        Pictures and notes.

    Raises:
        ImageError: a picture that cannot be read.
        ValueError: an argument that does not fit.
        RuntimeError: numbers or memory that could not be rescued.
    """
    native = native_size(pipe.unet)
    scale = pipe.vae_scale_factor
    height = native[0] * scale if request.height is None else request.height
    width = native[1] * scale if request.width is None else request.width
    _check(pipe, request, height, width)
    conditioning = condition(pipe, request)
    shape = (len(conditioning.context), pipe.unet.config.in_channels, height // scale, width // scale)
    check_tensors(shape[0], request.generator, request.latents if request.method is None else None, shape)
    with in_float32(pipe.vae) if pipe.upcasts_vae() else nullcontext():
        latents, notes = _sample(pipe, request, conditioning, shape, native)
        if request.output_type == "latent":
            return SeeCoderPipelineOutput(images=latents, notes=notes)
        images, said = _decoded(pipe, request, latents)
    return SeeCoderPipelineOutput(images=images, notes=list(dict.fromkeys(notes + said)))


def _decoded(pipe: Any, request: Request, latents: torch.Tensor) -> tuple[Any, list[str]]:
    """Pictures in the form that was asked for, and what had to be done differently."""
    pixels, notes = decode_latents(
        pipe.vae, latents, wrap=_is_closed_loop(request.method), memory=request.autoencoder_memory
    )
    return pipe.image_processor.postprocess(pixels.float(), output_type=request.output_type), notes


def _check(pipe: Any, request: Request, height: int, width: int) -> None:
    """Everything that can be said before a network runs."""
    check_size(height, width, pipe.vae_scale_factor)
    check_numbers(
        num_inference_steps=request.num_inference_steps,
        num_images_per_prompt=request.num_images_per_prompt,
        guidance_scale=request.guidance_scale,
        context_scale=request.context_scale,
        controlnet_conditioning_scale=request.controlnet_conditioning_scale,
        guidance_rescale=request.guidance_rescale,
        eta=request.eta,
        output_type=request.output_type,
        autoencoder_memory=request.autoencoder_memory,
    )
    if (request.control_image is None) != (pipe.controlnet is None):
        have, lack = ("controlnet", "control_image") if pipe.controlnet is not None else ("control_image", "controlnet")
        raise ValueError(f"there is a `{have}` but no `{lack}`; one works only with the other.")
    start, end = request.control_guidance_start, request.control_guidance_end
    if not 0.0 <= start <= end <= 1.0:
        raise ValueError(
            f"`control_guidance_start`={start} and `control_guidance_end`={end} must lie in 0-1, in this order."
        )
    unknown = [name for name in request.callback_on_step_end_tensor_inputs if name not in CALLBACK_TENSORS]
    if unknown:
        raise ValueError(
            f"`callback_on_step_end_tensor_inputs` has {unknown[0]!r}; choose from {', '.join(CALLBACK_TENSORS)}."
        )
    compose(request.method)  # raises on methods that do not go together


def _sample(
    pipe: Any, request: Request, conditioning: Conditioning, shape: tuple[int, int, int, int], native: tuple[int, int]
) -> tuple[torch.Tensor, list[str]]:
    """Latents of the result, and what had to be done differently."""
    denoiser = HalvedOnDemand(unet_denoiser(pipe.unet, request.cross_attention_kwargs), "UNet")
    control, controlnet = _control(pipe, request, shape[0])
    notes: list[str] = []
    size = (shape[2] * pipe.vae_scale_factor, shape[3] * pipe.vae_scale_factor)
    encoder = vae_encoder(pipe.vae, request.autoencoder_memory, notes)
    start = None if request.start_image is None else _start_latents(pipe, request.start_image, size, encoder)
    with pipe.progress_bar(total=request.num_inference_steps) as bar:
        watch = _Watch(pipe, request, conditioning, bar)
        try:
            latents = sample(
                denoiser,
                pipe.scheduler,
                latent_shape=shape,
                native_size=native,
                context=conditioning.context,
                negative_context=conditioning.negative_context,
                num_inference_steps=request.num_inference_steps,
                guidance_scale=request.guidance_scale,
                guidance_rescale=request.guidance_rescale,
                eta=request.eta,
                generator=request.generator,
                method=request.method,
                latents=request.latents,
                image_latents=start,
                added_conditions=pipe.added_conditions(request, conditioning, size),
                control=control,
                decoder=vae_decoder(pipe.vae, request.autoencoder_memory, notes, native),
                encoder=encoder,
                unet=pipe.unet,
                view_batch_size=request.view_batch_size,
                on_step=watch,
                on_stage=_preview(pipe, request),
            )
        except _Interrupted:
            latents = watch.latents
            notes.append(
                f"the run was interrupted after step {watch.step} of {watch.num_steps}; the picture is unfinished."
            )
    return latents, [*denoiser.notes, *(controlnet.notes if controlnet else []), *notes]


class _Watch:
    """What happens after every step: the progress bar, the user's callback, the wish to stop."""

    def __init__(self, pipe: Any, request: Request, conditioning: Conditioning, bar: Any) -> None:
        self._pipe, self._bar = pipe, bar
        self._callback = request.callback_on_step_end
        self._names = request.callback_on_step_end_tensor_inputs
        self._tensors = {"context": conditioning.context, "negative_context": conditioning.negative_context}
        self.latents = torch.empty(0)
        self.step = self.num_steps = 0

    def __call__(self, progress: Progress) -> None:
        if self._bar.total != progress.num_steps:
            self._bar.reset(progress.num_steps)
        if progress.num_stages > 1:
            self._bar.set_description(progress.stage, refresh=False)
        self._bar.update(progress.step - self._bar.n)
        self.latents, self.step, self.num_steps = progress.latents, progress.step, progress.num_steps
        self._pipe._num_timesteps = progress.num_steps
        if self._callback is not None:
            self._call_back(progress)
        if self._pipe.interrupt and progress.step < progress.num_steps:
            raise _Interrupted

    def _call_back(self, progress: Progress) -> None:
        tensors = {**self._tensors, "latents": progress.latents}
        given = {name: tensors[name] for name in self._names}
        returned = self._callback(self._pipe, progress.step - 1, progress.timestep, given) or {}  # type: ignore[misc]
        changed = [name for name, value in returned.items() if value is not given.get(name)]
        if changed:
            raise ValueError(
                f"`callback_on_step_end` returned another `{changed[0]}`; it may look at the run and stop it, not "
                f"change it."
            )


def _preview(pipe: Any, request: Request) -> Callable[[StageEnd], None] | None:
    """What shows the user the result of every stage but the last, which the call itself returns."""
    callback = request.callback_on_stage_end
    if callback is None:
        return None

    def show(stage: StageEnd) -> None:
        if stage.stage_index + 1 < stage.num_stages:
            wants_latents = request.output_type == "latent"
            callback(pipe, stage, stage.latents if wants_latents else _decoded(pipe, request, stage.latents)[0])

    return show


def _control(pipe: Any, request: Request, count: int) -> tuple[Control | None, HalvedOnDemand | None]:
    if request.control_image is None:
        return None, None
    given = request.control_image
    pictures = [load_image(picture)[None] for picture in (given if isinstance(given, (list, tuple)) else [given])]
    if len(pictures) not in (1, count) or len({tuple(picture.shape) for picture in pictures}) > 1:
        raise ValueError(
            f"`control_image` has {len(pictures)} pictures for {count} results; give one for all, or one each, of one "
            f"size."
        )
    residuals = control_residuals(
        pipe.controlnet,
        request.controlnet_conditioning_scale,
        request.control_guidance_start,
        request.control_guidance_end,
        pipe.scheduler.config.num_train_timesteps,
    )
    call = HalvedOnDemand(residuals, "ControlNet")
    image = torch.cat(pictures).to(pipe._execution_device)
    return Control(image=image, residuals=call, pixels_per_cell=pipe.vae_scale_factor), call


def _start_latents(
    pipe: Any, picture: Any, size: tuple[int, int], encoder: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Encode the picture that a method starts from, at most at the size of the result and in its aspect ratio."""
    pixels = load_image(picture)[None]
    height, width = pixels.shape[-2:]
    aspect = (width / height) / (size[1] / size[0])
    if abs(aspect - 1.0) > _ASPECT_TOLERANCE:
        raise ValueError(
            f"`start_image` is {height}x{width}, another aspect ratio than the result's {size[0]}x{size[1]}. Crop it, "
            f"or ask "
            f"for a `width` near {round(size[0] * width / height)}."
        )
    share = min(1.0, max(height / size[0], width / size[1]))
    cell = pipe.vae_scale_factor
    target = [max(cell, round(side * share / cell) * cell) for side in size]
    if list(pixels.shape[-2:]) != target:
        pixels = functional.interpolate(pixels, size=target, mode="bicubic", antialias=True).clamp(0.0, 1.0)
    return encoder(pixels.to(pipe._execution_device) * 2.0 - 1.0)


def _is_closed_loop(method: Any | Sequence[Any]) -> bool:
    windows = compose(method).windows
    return windows is not None and windows.closed_loop
