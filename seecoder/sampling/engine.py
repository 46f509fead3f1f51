"""The sampling loop: runs a plan of stages on a bare callable denoiser."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from seecoder.sampling.conditions import AddedConditions, Conditions, Control
from seecoder.sampling.fields import Evaluator
from seecoder.sampling.parts import Codec, Denoiser, Edited, Editor, Outcome, Run, Stage, Step
from seecoder.sampling.randomness import Generators, Randomness
from seecoder.sampling.recipe import Method, compose
from seecoder.sampling.stepper import Stepper
from seecoder.sampling.views import Size


@dataclass(frozen=True)
class Progress:
    """One finished step.

    Attributes:
        stage: Name of the stage.
        stage_index: Its place, 0 … num_stages - 1.
        num_stages: Stages of the run.
        step: Steps done so far in the whole run, 1 … num_steps.
        num_steps: Steps of the whole run, over all stages.
        timestep: The training timestep that was left behind.
        latents: The sample after the step, (B, C, h, w) of the stage's size; not to be changed in place.
    """

    stage: str
    stage_index: int
    num_stages: int
    step: int
    num_steps: int
    timestep: float
    latents: torch.Tensor


@dataclass(frozen=True)
class StageEnd:
    """One finished stage, for previews: `latents` (B, C, h, w) is its clean result, ready for the decoder."""

    stage: str
    stage_index: int
    num_stages: int
    latents: torch.Tensor


def sample(
    denoiser: Denoiser,
    scheduler: Any,
    *,
    latent_shape: tuple[int, int, int, int],
    native_size: Size,
    context: torch.Tensor,
    negative_context: torch.Tensor | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float = 1.0,
    guidance_rescale: float = 0.0,
    eta: float = 0.0,
    generator: Generators = None,
    method: Method | Sequence[Method] | None = None,
    latents: torch.Tensor | None = None,
    image_latents: torch.Tensor | None = None,
    added_conditions: AddedConditions | None = None,
    control: Control | None = None,
    decoder: Codec | None = None,
    encoder: Codec | None = None,
    unet: torch.nn.Module | None = None,
    view_batch_size: int = 16,
    on_step: Callable[[Progress], None] | None = None,
    on_stage: Callable[[StageEnd], None] | None = None,
) -> torch.Tensor:
    """Sample latents; see the package's docstring for the contract of every callable.

    Args:
        denoiser: `denoiser(latents, timestep, context, **conditions) -> output`.
        scheduler: A diffusers scheduler; it is copied, never changed.
        latent_shape: (pictures, channels, height, width) of the result, in latent cells.
        native_size: (height, width) in cells that the network was trained at.
        context: (1 or B, tokens, width); its device and data type are those that the denoiser is fed with.
        negative_context: The same for the unconditional branch; needed unless `guidance_scale` is 1.
        num_inference_steps: Steps of one whole trajectory.
        guidance_scale: Classifier-free guidance; 1 evaluates the conditional branch only.
        guidance_rescale: Share in [0, 1] of the rescaled prediction (arXiv 2305.08891, Sec. 3.4).
        eta: DDIM's stochasticity, 0 for other schedulers.
        generator: None, one generator, or one per picture. A picture does not depend on its batch.
        method: How to sample above the native size; None is one plain stage. A list where methods compose.
        latents: Unit-variance starting noise for the first stage, in place of drawn noise.
        image_latents: Clean latents (1 or B, C, h, w) of given pictures; only for methods that start from one.
        added_conditions: `added_conditions(view, "positive" or "negative", latent_size) -> keyword arguments`.
        control: ControlNet residuals.
        decoder: Latents to pixels, differentiable where a method takes gradients.
        encoder: Pixels to latents.
        unet: The module inside `denoiser`, for methods that patch layers.
        view_batch_size: Native-sized (picture, view) pairs evaluated at once, larger views by their area; bounds the
            memory and does not change the result.
        on_step: Called after every step; an exception raised in it ends the run and leaves the network as it was.
        on_stage: Called after every stage with its clean latents.

    Returns:
        Latents (B, C, height, width), float32 (float64 if `context` is).

    Raises:
        ValueError: If an argument does not fit, or the methods do not compose; the message says why.
    """
    _check(latent_shape, native_size, num_inference_steps, guidance_rescale, view_batch_size)
    _check_picture(image_latents, latent_shape)
    dtype = torch.promote_types(context.dtype, torch.float32)
    randomness = Randomness(generator, latent_shape[0])
    stepper = Stepper(scheduler, num_inference_steps, eta=eta, randomness=randomness, device=context.device)
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
        decoder=decoder,
        encoder=encoder,
        unet=unet,
        view_batch_size=view_batch_size,
    )
    evaluator = Evaluator(
        denoiser, stepper, Conditions(context, negative_context, added_conditions, control), view_batch_size
    )
    with torch.no_grad():  # not inference_mode: editors may need gradients
        stages = _plan(method, run)
        report = _Report(stages, on_step, on_stage)
        outcome: Outcome | None = None
        for place, stage in enumerate(stages):
            for step, reached in _trajectory(run, stage, place, outcome, evaluator):
                outcome = reached
                report.step(step, reached)
            if outcome is None:
                raise ValueError(f"Stage {stage.name!r} has no steps. Use more `num_inference_steps`.")
            if stage.finish is not None:
                outcome = Outcome(stage.finish(outcome.latents), outcome.original)
            report.stage_end(place, outcome, is_whole=stage.steps.stop == len(stepper))
    if outcome is None:
        raise ValueError("The plan has no stages.")
    return outcome.latents


def _plan(method: Method | Sequence[Method] | None, run: Run) -> list[Stage]:
    """The stages of the run, which have to end at its size."""
    stages = compose(method).plan(run)
    if stages and stages[-1].latent_size != run.size:
        (height, width), (rows, columns) = stages[-1].latent_size, run.size
        raise ValueError(
            f"The method's last stage makes {height}x{width} cells, not the {rows}x{columns} that were asked for. Its "
            "plan has to end at the size of the run."
        )
    return stages


class _Report:
    """Tells the caller of every step and every stage of a run.

    Args:
        stages: All stages of the run.
        on_step: Called after every step.
        on_stage: Called after every stage.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        on_step: Callable[[Progress], None] | None,
        on_stage: Callable[[StageEnd], None] | None,
    ) -> None:
        self._names = [stage.name for stage in stages]
        self._num_steps = sum(len(stage.steps) for stage in stages)
        self._done = 0
        self._on_step, self._on_stage = on_step, on_stage

    def step(self, step: Step, outcome: Outcome) -> None:
        """Tell of one finished step."""
        self._done += 1
        if self._on_step is not None:
            name, count = self._names[step.stage], len(self._names)
            self._on_step(Progress(name, step.stage, count, self._done, self._num_steps, step.time, outcome.latents))

    def stage_end(self, place: int, outcome: Outcome, *, is_whole: bool) -> None:
        """Tell of one finished stage; one that ends before the trajectory does shows the predicted original."""
        if self._on_stage is not None:
            latents = outcome.latents if is_whole else outcome.original
            self._on_stage(StageEnd(self._names[place], place, len(self._names), latents))


def _trajectory(
    run: Run, stage: Stage, place: int, before: Outcome | None, evaluator: Evaluator
) -> Iterator[tuple[Step, Outcome]]:
    """The steps of one stage, each with the sample and the prediction of the original that it reached."""
    stepper = run.stepper
    stepper.restart(stage.steps.start)
    opening = stage.begin(run, before)
    keys = run.randomness.keys() if stage.keyed else ()
    latents = opening.latents
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
        )
        edited = _edit(latents, opening.editors, step, evaluator)
        fields = evaluator.fields(edited, step, stage.paths, stage.guidance.branches(step))
        output = stage.guidance.combine(fields, step)
        original = stepper.predict_original(output, edited.latents, index)
        latents = stepper.step(output, edited.latents, index)
        yield step, Outcome(latents, original)


def _edit(latents: torch.Tensor, editors: Sequence[Editor], step: Step, evaluator: Evaluator) -> Edited:
    """All editors in order; half steps of two-evaluation schedulers are left alone."""
    edited = Edited(latents)
    if not editors or not evaluator.stepper.is_boundary(step.index):
        return edited
    for editor in editors:
        edited = editor.apply(edited.latents, step, evaluator)
    if any(editor.is_large(step) for editor in editors):
        evaluator.stepper.restart(step.index)
    return edited


def _check(
    latent_shape: tuple[int, ...], native_size: Size, num_inference_steps: int, rescale: float, view_batch_size: int
) -> None:
    if len(latent_shape) != 4 or min(latent_shape) < 1:
        raise ValueError(f"`latent_shape`={latent_shape} must be (pictures, channels, height, width), all at least 1.")
    if len(native_size) != 2 or min(native_size) < 1:
        raise ValueError(f"`native_size`={native_size} must be (height, width) in latent cells.")
    if num_inference_steps < 1:
        raise ValueError(f"`num_inference_steps`={num_inference_steps} must be at least 1.")
    if not 0.0 <= rescale <= 1.0:
        raise ValueError(f"`guidance_rescale`={rescale} must lie between 0 and 1.")
    if view_batch_size < 1:
        raise ValueError(f"`view_batch_size`={view_batch_size} must be at least 1.")


def _check_picture(image_latents: torch.Tensor | None, latent_shape: tuple[int, ...]) -> None:
    if image_latents is None:
        return
    shape = tuple(image_latents.shape)
    if len(shape) != 4 or shape[0] not in (1, latent_shape[0]) or shape[1] != latent_shape[1]:
        raise ValueError(
            f"`image_latents` has shape {shape}; give latents of one picture, or of {latent_shape[0]}, with "
            f"{latent_shape[1]} channels."
        )
