"""One call of a pipeline from beginning to end: check, encode, sample, decode."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Concatenate, ParamSpec, cast

import torch
from diffusers.utils import BaseOutput

from seecoder.base_model.added_conditions import guidance_embedding
from seecoder.base_model.facts import is_sdxl, native_size, reads_mask
from seecoder.base_model.schedulers import fitting_scheduler
from seecoder.call_rules import CALLBACK_TENSORS, XL_TENSORS, check_size, whole_steps
from seecoder.pipelines.adapters.control import controllers
from seecoder.pipelines.adapters.image_prompt import check_image_prompts, embeddings, with_image_prompts
from seecoder.pipelines.adapters.lora import kept_lora_weights
from seecoder.pipelines.autoencoding import decode_latents, in_float32, vae_decoder, vae_encoder
from seecoder.pipelines.base import ContextPipeline
from seecoder.pipelines.conditioning import condition
from seecoder.pipelines.context.context_strength import context_strength, layer_strengths
from seecoder.pipelines.context.text import text_contexts
from seecoder.pipelines.inputs import check_aspect, start_pixels
from seecoder.pipelines.networks import HalvedOnDemand
from seecoder.pipelines.redrawing import Redrawing, redrawing
from seecoder.pipelines.request import Request
from seecoder.sampling.composition import compose
from seecoder.sampling.engine import sample
from seecoder.sampling.methods.registry import named_methods
from seecoder.sampling.stages import Changes, Progress, StageEnd
from seecoder.sampling.views import full_view

_Arguments = ParamSpec("_Arguments")
_SDXL_ALONE = ("pooled_context", "negative_pooled_context", "original_size", "crops_coords_top_left", "target_size")


@dataclass
class SeeCoderPipelineOutput(BaseOutput):
    """Pictures, and what had to be done differently to get them.

    Attributes:
        images: A list of PIL images, an array (N, H, W, 3) in [0, 1], a tensor (N, 3, H, W) in [0, 1], or the latents
            (N, C, h, w), by `output_type`.
        notes: One sentence for everything that was not done as asked: a decode repeated in float32, or done in tiles.
            Empty when all went as asked.
    """

    images: Any
    notes: list[str] = field(default_factory=list)


def _check_family(request: Request, shown: Sequence[str], *, sdxl: bool) -> None:
    """Refuse what only SDXL reads, and for SDXL half of what an encoder gives."""
    if sdxl and (request.context is None) != (request.pooled_context is None):
        raise ValueError("`context` and `pooled_context` go together; `encode_context` gives both.")
    given = {name: getattr(request, name) for name in _SDXL_ALONE}
    unread = [name for name, value in given.items() if isinstance(value, torch.Tensor) or value not in (None, (0, 0))]
    unread += [name for name in shown if name in XL_TENSORS]
    if unread and not sdxl:
        raise ValueError(f"`{unread[0]}` has no effect: this base is not SDXL's, which alone reads it. Leave it out.")


class _Interrupted(Exception):
    """Ends a run whose `interrupt` was set by a callback; its argument is the `Progress` at that step."""


class Call:
    """One call of a pipeline.

    Args:
        pipe: The pipeline; its parts are the same before and after.
        request: What is asked for.

    Raises:
        ValueError: An argument that does not fit the pipeline, or methods that do not go together.
    """

    def __init__(self, pipe: ContextPipeline, request: Request) -> None:
        self._pipe, self._request = pipe, request
        decodes = request.output_type != "latent" or request.start_image is not None or request.method is not None
        for name in ("scheduler", "unet", *(["vae"] if decodes else [])):
            if vars(pipe).get(name) is None:  # taken out since, to make room
                raise ValueError(f"`{name}`=None of the pipeline must be set for a call. Set `pipe.{name}` again.")
        self._cell = pipe.vae_scale_factor
        asked = None
        if request.height and request.width and not request.method:  # then nothing but memory depends on it
            asked = (request.height // self._cell, request.width // self._cell)
        self._native = native_size(pipe.unet, asked)
        height, width = (side * self._cell for side in self._native)
        self._size = (
            height if request.height is None else request.height,
            width if request.width is None else request.width,
        )
        check_size(*self._size, self._cell)
        self._controllers = controllers(pipe.controlnet, pipe.adapter, request)
        check_image_prompts(pipe, request)
        pipe.check_lora_scale(request.cross_attention_kwargs)
        if pipe.controlnet is not None and pipe.controlnet.dtype != pipe.unet.dtype:
            raise ValueError(
                f"`controlnet` in {pipe.controlnet.dtype} must be in {pipe.unet.dtype}, as the base's UNet is. Use "
                "`pipe.to(dtype)`."
            )
        shown = request.callback_on_step_end_tensor_inputs
        self._shown = getattr(request.callback_on_step_end, "tensor_inputs", shown)  # as diffusers' callbacks have
        _check_family(request, self._shown, sdxl=is_sdxl(pipe.unet))
        if "image" in self._shown and pipe.controlnet is None:
            raise ValueError("`image` is what a ControlNet sees, and there is none; use another callback.")
        if reads_mask(pipe.unet) and request.mask_image is None:
            raise ValueError(
                "`mask_image`=None must be a mask, as this base is an inpainting model and redraws what a mask marks. "
                "Give `start_image` and `mask_image`, or use its text-to-image sibling."
            )
        self._cells = cells = (self._size[0] // self._cell, self._size[1] // self._cell)
        self._recipe = compose(named_methods(request.method, cells, self._native, whole_steps(vars(request))))
        self._redrawing: Redrawing | None = None
        self._strengths = layer_strengths(pipe.unet, request.context_scale)
        restarts = request.start_image is not None or self._recipe.restarts(cells, self._native)
        self._scheduler, self._notes = fitting_scheduler(pipe.scheduler, restarts=restarts)
        if self._recipe.editor is not None and next(pipe.vae.parameters()).is_inference():
            raise ValueError(
                "`vae` was made in `torch.inference_mode()`, where nothing has the gradients that SyncDiffusion needs. "
                "Load the pipeline outside of it; it may be called inside."
            )

    @torch.inference_mode(False)  # SyncDiffusion needs gradients, whatever mode the caller is in
    @torch.no_grad()
    def run(self) -> SeeCoderPipelineOutput:
        """Make the pictures.

        Raises:
            ImageError: A picture that cannot be read.
            ValueError: An argument that does not fit.
            RuntimeError: Numbers or memory that could not be rescued.
        """
        pipe = self._pipe
        pipe._interrupt = False
        with ExitStack() as stack:
            stack.callback(pipe.maybe_free_model_hooks)
            if pipe.upcasts_vae():
                stack.enter_context(in_float32(pipe.vae))
            if self._request.cross_attention_kwargs:
                stack.enter_context(kept_lora_weights(pipe.unet))
            sampler = self._sampler()
            stack.enter_context(context_strength(self._strengths, self._num_picture_tokens))
            progress_bar = cast(Any, pipe).progress_bar  # torch.compiler.disable hides its type
            with progress_bar(total=self._request.num_inference_steps) as bar:
                try:
                    latents = sampler(on_step=partial(self._after_step, bar))
                except _Interrupted as interruption:
                    progress: Progress = interruption.args[0]
                    latents = progress.latents
                    place = f"after step {progress.step} of {progress.num_steps}"
                    self._notes.append(f"the run was interrupted {place}; the picture is unfinished.")
            images, notes = self._decoded(latents)
        return SeeCoderPipelineOutput(images=images, notes=list(dict.fromkeys(self._notes + notes)))

    def _sampler(self) -> Callable[..., torch.Tensor]:
        """Sampling with all that it needs; `on_step` is left to be given."""
        pipe, request, notes = self._pipe, self._request, self._notes
        device = pipe._execution_device
        encoder = vae_encoder(pipe.vae, request.autoencoder_memory, notes)
        enlarged = self._read_start_image(encoder, device)
        text = None
        if request.text is not None:
            lora_scale = (request.cross_attention_kwargs or {}).get("scale", 1.0)
            text = text_contexts(pipe, request.text, request.negative_text, notes, lora_scale)
        contexts = condition(request, pipe.encoder, pipe.unet, device, text)
        self._contexts = {"context": contexts.context, "negative_context": contexts.negative_context}
        self._num_picture_tokens = contexts.context.shape[1] - (0 if text is None else text.context.shape[1])
        count, cells = len(contexts.context), self._cells
        extra: dict[str, Any] = {}
        if request.cross_attention_kwargs is not None:
            extra["cross_attention_kwargs"] = dict(request.cross_attention_kwargs)
        added = pipe.added_conditions(request, contexts, self._size)
        guidance_scale = pipe.default_guidance if request.guidance_scale is None else request.guidance_scale
        guided = guidance_embedding(pipe.unet, guidance_scale)
        guidance_scale = max(guidance_scale, 1.0)  # as in stock pipelines: SDXL-Turbo is called with 0
        if guided is not None:  # a distilled model does by itself what guidance would
            guidance_scale, extra["timestep_cond"] = 1.0, guided.to(device)
        pipe._guidance_scale = self._guidance = guidance_scale
        # As stock pipelines have them: the unconditional rows first, which callbacks cut off to end the guidance.
        told = [added(full_view(cells), branch, cells) for branch in ("negative", "positive")] if added else []
        self._stock = {"prompt_embeds": torch.cat([contexts.negative_context, contexts.context])} | {
            name: torch.cat([one["added_cond_kwargs"][key] for one in told]) for name, key in XL_TENSORS.items() if told
        }
        control = [controller(count, device, self._cell, notes) for controller in self._controllers]
        for seen in control:
            name = "control_image" if seen.prepare is None else "adapter_image"
            check_aspect(name, (seen.image.shape[-2], seen.image.shape[-1]), self._size, notes)
        if "image" in self._shown:
            self._stock["image"] = control[0].image.expand(count, -1, -1, -1).repeat(2, 1, 1, 1)
        redrawn, tells_mask = self._redrawing, reads_mask(pipe.unet)
        return partial(
            sample,
            HalvedOnDemand(partial(pipe.unet, return_dict=False, **extra), "UNet", notes),
            self._scheduler,
            latent_shape=(count, pipe.unet.config.out_channels, cells[0], cells[1]),
            native_size=self._native,
            **self._contexts,
            num_inference_steps=request.num_inference_steps,
            schedule=request.schedule,
            guidance_scale=guidance_scale,
            guidance_rescale=request.guidance_rescale,
            eta=request.eta,
            generator=request.generator,
            method=self._recipe,
            latents=request.latents,
            image_latents=enlarged,
            start_image=None if redrawn is None else redrawn.start(tells_mask=tells_mask),
            extra_channels=redrawn.channels() if redrawn is not None and tells_mask else None,
            added_conditions=with_image_prompts(
                added, embeddings(pipe, request, count, device, guided=guidance_scale != 1.0)
            ),
            control=control,
            decoder=vae_decoder(pipe.vae, request.autoencoder_memory, notes, self._native),
            encoder=encoder,
            unet=pipe.unet,
            view_batch_size=request.view_batch_size,
            on_stage=self._after_stage,
        )

    def _read_start_image(
        self, encoder: Callable[[torch.Tensor], torch.Tensor], device: torch.device
    ) -> torch.Tensor | None:
        """Latents of a picture to enlarge, if there is one; a picture to redraw is kept in `_redrawing`."""
        request, stages = self._request, self._recipe.stages
        if request.start_image is None:
            return None
        if request.strength is None and request.mask_image is None and stages is not None and stages.enlarges_images:
            pixels = start_pixels(request.start_image, self._size, self._cell)
            return encoder(pixels.to(device) * 2.0 - 1.0)
        self._redrawing = redrawing(request, self._size, self._cell, encoder, device)
        if self._redrawing.mask is not None and not self._redrawing.mask.any():
            self._notes.append("the mask is black everywhere, so that nothing was redrawn; white is.")
        return None

    def _after_step(self, bar: Any, progress: Progress) -> Changes | None:
        """Move the progress bar, call the user's callback, and stop if it asked for that."""
        if self._pipe.num_timesteps != progress.num_steps:  # to set an attribute of a pipeline compares its parts
            self._pipe._num_timesteps = progress.num_steps
        if bar.total != progress.num_steps:
            bar.reset(progress.num_steps)
        if progress.num_stages > 1:
            bar.set_description(progress.stage, refresh=False)
        bar.update(progress.step - bar.n)
        changes = None if self._request.callback_on_step_end is None else self._call_back(progress)
        if self._pipe.interrupt and progress.step < progress.num_steps:
            raise _Interrupted(progress if changes is None else replace(progress, latents=changes.latents))
        return changes

    def _call_back(self, progress: Progress) -> Changes:
        """Show the user's callback a step, and take what it changed, in place or in what it returns."""
        function = self._request.callback_on_step_end
        assert function is not None
        before = {"latents": progress.latents, **self._contexts, **self._stock}
        shown = {name: before[name].clone() for name in self._shown}  # so that a change in place is seen as one
        returned = function(self._pipe, progress.step - 1, progress.timestep, shown)
        returned = {} if returned is None else returned
        if not isinstance(returned, Mapping):
            raise ValueError(
                f"`callback_on_step_end` returned a {type(returned).__name__}; it must return a dictionary, or None."
            )
        after = {**before, **shown, **returned}
        for name, rows in self._stock.items():
            value = after.pop(name)
            if not torch.equal(value, rows[len(rows) - len(value) :]):
                raise ValueError(f"`callback_on_step_end` changed `{name}`, of which only rows may be cut off.")
        for name, value in after.items():
            if name not in before:
                raise ValueError(
                    f"`callback_on_step_end` gave `{name}`, which nothing reads; it may change "
                    f"{', '.join(CALLBACK_TENSORS)}."
                )
            wanted = tuple(before[name].shape)
            found = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            if found != wanted:
                raise ValueError(
                    f"`callback_on_step_end` gave `{name}`={found}; it must be a tensor of shape {wanted}."
                )
            after[name] = value.to(before[name])
        self._contexts = {name: after[name] for name in self._contexts}
        scale = self._pipe._guidance_scale
        factor = scale / self._guidance if scale > 1.0 else 0.0
        return Changes(**after, guidance=factor)

    def _after_stage(self, stage: StageEnd) -> None:
        """Show the user the result of every stage but the last, which the call itself returns."""
        callback = self._request.callback_on_stage_end
        if callback is not None and stage.stage_index + 1 < stage.num_stages:
            callback(self._pipe, stage, self._decoded(stage.latents)[0])

    def _decoded(self, latents: torch.Tensor) -> tuple[Any, list[str]]:
        """The result in the form that was asked for, and what had to be done differently."""
        request, windows = self._request, self._recipe.windows
        if request.output_type == "latent":
            return latents, []
        is_loop = windows is not None and windows.closed_loop
        decoded, notes = decode_latents(self._pipe.vae, latents, wrap=is_loop, memory=request.autoencoder_memory)
        pixels = (decoded.float() / 2.0 + 0.5).clamp(0.0, 1.0)
        if self._redrawing is not None and pixels.shape[-2:] == self._redrawing.pixels.shape[-2:]:
            pixels = self._redrawing.paste(pixels)
        is_ready = [False] * len(pixels)  # in [0, 1] already
        return self._pipe.image_processor.postprocess(pixels, request.output_type, do_denormalize=is_ready), notes


def called_with(
    request: Callable[_Arguments, Request],
) -> Callable[Concatenate[Any, _Arguments], SeeCoderPipelineOutput | tuple[Any, ...]]:
    """Make the call of a pipeline: it takes what a request does, with its signature and its help."""

    def __call__(
        self: ContextPipeline, *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> SeeCoderPipelineOutput | tuple[Any, ...]:
        for name in kwargs.keys() - taken.parameters.keys():
            near = name.replace("prompt_embeds", "context").replace("prompt", "text")  # from stock pipelines' names
            hint = f"; did you mean `{near}`?" if near in taken.parameters else "."
            raise TypeError(f"`{name}` is no argument of {type(self).__name__}(){hint}")
        asked = request(*args, **kwargs)
        output = Call(self, asked).run()
        return output if asked.return_dict else output.to_tuple()

    taken = inspect.signature(request)
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    __call__.__signature__ = taken.replace(  # type: ignore[attr-defined]
        parameters=[first, *taken.parameters.values()], return_annotation=SeeCoderPipelineOutput
    )
    __call__.__doc__ = request.__doc__
    return __call__
