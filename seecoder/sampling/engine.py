"""The sampling loop: runs a plan of stages on a bare callable denoiser."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from seecoder.base_model.schedulers import fitting_scheduler
from seecoder.checks import instance, number, optional, require, some_of, whole
from seecoder.sampling.composition import compose
from seecoder.sampling.conditions import AddedConditions, Conditions, Control, ExtraChannels
from seecoder.sampling.fields import Denoiser, EditedSample, Editor, Evaluator
from seecoder.sampling.image_to_image import StartImage
from seecoder.sampling.methods.registry import named_methods
from seecoder.sampling.randomness import Generators, Randomness
from seecoder.sampling.recipe import Method, Recipe
from seecoder.sampling.stages import Changes, Codec, Outcome, Progress, Run, Stage, StageEnd
from seecoder.sampling.step import Step
from seecoder.sampling.stepper import Stepper
from seecoder.sampling.views import Size

logger = logging.getLogger(__name__)


def sample(
    denoiser: Denoiser,
    scheduler: Any,
    *,
    latent_shape: tuple[int, int, int, int],
    native_size: Size,
    context: torch.Tensor,
    negative_context: torch.Tensor | None = None,
    num_inference_steps: int = 50,
    schedule: Mapping[str, Sequence[float]] | None = None,
    guidance_scale: float = 1.0,
    guidance_rescale: float = 0.0,
    eta: float = 0.0,
    generator: Generators = None,
    method: Method | Sequence[Method | str] | Recipe | str | None = None,
    latents: torch.Tensor | None = None,
    image_latents: torch.Tensor | None = None,
    start_image: StartImage | None = None,
    extra_channels: ExtraChannels | None = None,
    added_conditions: AddedConditions | None = None,
    control: Control | Sequence[Control] | None = None,
    decoder: Codec | None = None,
    encoder: Codec | None = None,
    unet: torch.nn.Module | None = None,
    view_batch_size: int = 16,
    on_step: Callable[[Progress], Changes | None] | None = None,
    on_stage: Callable[[StageEnd], None] | None = None,
) -> torch.Tensor:
    """Sample latents. The docstring of `seecoder.sampling` says what every callable gets and gives.

    Args:
        denoiser: `denoiser(latents, timestep, context, **conditions) -> output`.
        scheduler: A diffusers scheduler; it is copied, never changed. One that cannot do what the methods need is
            replaced by the nearest that can, which the log says.
        latent_shape: (pictures, channels, height, width) of the result, in latent cells.
        native_size: (height, width) in cells that the network was trained at.
        context: (1 or B, tokens, width); its device and data type are those that the denoiser is fed with.
        negative_context: The same for the unconditional branch; needed unless `guidance_scale` is 1.
        num_inference_steps: Steps of one whole trajectory.
        schedule: {"timesteps": …} or {"sigmas": …} for the scheduler's `set_timesteps`, in place of
            `num_inference_steps`.
        guidance_scale: Classifier-free guidance; 1 evaluates the conditional branch only.
        guidance_rescale: Fraction in [0, 1] of the rescaled prediction (arXiv 2305.08891, Sec. 3.4).
        eta: DDIM's stochasticity, 0 for other schedulers.
        generator: None, one generator, or one per picture. A picture does not depend on its batch.
        method: How to sample above the native size; None is one plain stage. A list where methods compose, or
            the recipe that `compose` made of them. Names do as well: of methods, or of a preset such as "auto".
        latents: Unit-variance starting noise for the first stage, in place of drawn noise.
        image_latents: Clean latents (1 or B, C, h, w) of given pictures to enlarge; only for methods that do.
        start_image: A picture to redraw, all of it or under a mask.
        extra_channels: Called as `extra_channels(latent_size)`: (1 or B, channels, *latent_size) that the denoiser gets
            below the sample, cut to each view (the mask and the masked picture of an inpainting network).
        added_conditions: `added_conditions(view, "positive" or "negative", latent_size) -> keyword arguments`.
        control: One or several ControlNets or the like.
        decoder: Latents to pixels, differentiable where a method takes gradients.
        encoder: Pixels to latents.
        unet: The module inside `denoiser`, for methods that patch layers.
        view_batch_size: Native-sized (image, view) pairs evaluated at once, larger views by their area; bounds the
            memory and does not change the result.
        on_step: Called after every step; may return what goes on changed. An exception raised in it ends the run and
            leaves the network as it was.
        on_stage: Called after every stage with its clean latents.

    Returns:
        Latents (B, C, height, width), float32 (float64 if `context` is).

    Raises:
        ValueError: If an argument does not fit, or the methods do not compose; the message says why.
    """
    require("latent_shape", latent_shape, _SHAPE, owner="sample")
    require("native_size", native_size, _SIZE, owner="sample")
    require("num_inference_steps", num_inference_steps, whole(1), owner="sample")
    require("guidance_rescale", guidance_rescale, number(0.0, 1.0), owner="sample")
    require("view_batch_size", view_batch_size, whole(1), owner="sample")
    require("latents", latents, optional(instance(torch.Tensor)))
    _check_image_latents(image_latents, latent_shape)
    dtype = torch.promote_types(context.dtype, torch.float32)
    size = (latent_shape[2], latent_shape[3])
    if not isinstance(method, Recipe):
        method = compose(named_methods(method, size, native_size, num_inference_steps))
    begins_inside = start_image is not None or image_latents is not None
    scheduler, notes = fitting_scheduler(scheduler, restarts=begins_inside or method.restarts(size, native_size))
    for note in notes:
        logger.warning(note)
    randomness = Randomness(generator, latent_shape[0])
    stepper = Stepper(
        scheduler, num_inference_steps, eta=eta, randomness=randomness, device=context.device, schedule=schedule
    )
    run = Run(
        latent_shape=latent_shape,
        native_size=native_size,
        stepper=stepper,
        randomness=randomness,
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
        device=context.device,
        dtype=dtype,
        initial_noise=None if latents is None else latents.to(context.device, dtype),
        image_latents=None if image_latents is None else image_latents.to(context.device, dtype),
        start_image=start_image,
        decoder=decoder,
        encoder=encoder,
        unet=unet,
    )
    controls = [control] if isinstance(control, Control) else list(control or ())
    conditions = Conditions(context, negative_context, added_conditions, controls, extra_channels)
    evaluator = Evaluator(denoiser, stepper, conditions, view_batch_size)
    with torch.no_grad():  # not inference_mode: editors may need gradients
        stages = _plan(method, run)
        num_steps, done = sum(len(stage.steps) for stage in stages), 0
        outcome: Outcome | None = None
        for place, stage in enumerate(stages):
            where = (stage.name, place, len(stages))
            for step, reached in _trajectory(run, stage, place, outcome, evaluator):
                outcome, done = reached, done + 1
                if on_step is not None:
                    changes = on_step(Progress(*where, done, num_steps, step.time, reached.latents))
                    if changes is not None:
                        reached.change(changes.latents, stepper.alpha_after(step.index))
                        conditions.change(changes.context, changes.negative_context, changes.guidance)
            if outcome is None:
                raise ValueError(f"Stage {stage.name!r} has no steps. Use more `num_inference_steps`.")
            if stage.finish is not None:
                outcome.latents = stage.finish(outcome.latents)
                if run.kept_image is not None:
                    outcome.latents = run.kept_image.put_back(outcome.latents, stepper, stage.steps.stop)
            if on_stage is not None:  # a stage that ends before the trajectory does shows the predicted x0
                is_whole = stage.steps.stop == len(stepper)
                on_stage(StageEnd(*where, outcome.latents if is_whole else outcome.x0))
    if outcome is None:
        raise ValueError("The plan has no stages.")
    return outcome.latents


def _plan(recipe: Recipe, run: Run) -> list[Stage]:
    """The stages of the run, which have to end at its size."""
    stages = recipe.plan(run)
    if stages and stages[-1].latent_size != run.size:
        (height, width), (rows, columns) = stages[-1].latent_size, run.size
        raise ValueError(
            f"The method's last stage makes {height}x{width} cells, not the {rows}x{columns} that were asked for. Its "
            "plan has to end at the size of the run."
        )
    return stages


def _trajectory(
    run: Run, stage: Stage, place: int, before: Outcome | None, evaluator: Evaluator
) -> Iterator[tuple[Step, Outcome]]:
    """The steps of one stage, each with what it reached."""
    stepper = run.stepper
    stepper.restart(stage.steps.start)
    start = stage.begin(run, before)
    keys = run.randomness.keys() if stage.keyed else ()
    latents, noise, kept = start.latents, start.noise, run.kept_image
    if kept is not None:
        noise = run.noise(stage.latent_size) if noise is None else noise
        latents = latents if before is None else kept.put_back(latents, stepper, stage.steps.start, noise)
    for index in stage.steps:
        step = Step(
            index=index,
            count=len(stepper),
            timestep=stepper.timesteps[index],
            time=stepper.times[index],
            num_train_timesteps=stepper.num_train_timesteps,
            latent_size=stage.latent_size,
            native_size=run.native_size,
            stage=place,
            keys=keys,
            first=min(run.first_step, stage.steps.start),
            guidance=evaluator.conditions.guidance,
        )
        edited = _edit(latents, start.editors, step, evaluator)
        fields = evaluator.fields(edited, step, stage.paths, stage.guidance.branches(step))
        output = stage.guidance.combine(fields, step)
        latents = stepper.step(output, edited.latents, index)
        latents = latents if kept is None else kept.put_back(latents, stepper, index + 1, noise)
        outcome = Outcome(latents, latents)
        if index + 1 == stage.steps.stop < len(stepper):
            x0 = stepper.predict_x0(output, edited.latents, index)
            outcome.x0 = x0 if kept is None else kept.put_back(x0, stepper, len(stepper))
        yield step, outcome
        latents = outcome.latents


def _edit(latents: torch.Tensor, editors: Sequence[Editor], step: Step, evaluator: Evaluator) -> EditedSample:
    """All editors in order; half steps of two-evaluation schedulers are left alone."""
    edited = EditedSample(latents)
    if not editors or not evaluator.stepper.is_boundary(step.index):
        return edited
    for editor in editors:
        edited = editor.apply(edited.latents, step, evaluator)
    if any(editor.is_large(step) for editor in editors):
        evaluator.stepper.restart(step.index)
    return edited


_SHAPE = some_of(whole(1), "(pictures, channels, height, width), all at least 1", minimum=4, maximum=4)
_SIZE = some_of(whole(1), "(height, width) in latent cells", minimum=2, maximum=2)


def _check_image_latents(image_latents: torch.Tensor | None, latent_shape: tuple[int, ...]) -> None:
    shape = latent_shape if image_latents is None else tuple(image_latents.shape)
    if len(shape) != 4 or shape[0] not in (1, latent_shape[0]) or shape[1] != latent_shape[1]:
        raise ValueError(
            f"`image_latents` of shape {shape} must be (1 or {latent_shape[0]}, {latent_shape[1]}, height, width)."
        )
