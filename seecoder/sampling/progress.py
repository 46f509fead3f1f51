"""What a run tells its caller: every finished step, and every finished stage."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from seecoder.sampling.stages import Outcome, Stage
from seecoder.sampling.step import Step


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
    """One finished stage, for previews.

    Attributes:
        stage: Name of the stage.
        stage_index: Its place, 0 … num_stages - 1.
        num_stages: Stages of the run.
        latents: Its clean result (B, C, h, w), ready for the decoder.
    """

    stage: str
    stage_index: int
    num_stages: int
    latents: torch.Tensor


class Reporter:
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
        """Tell of one finished stage; one that ends before the trajectory does shows the predicted x0."""
        if self._on_stage is not None:
            latents = outcome.latents if is_whole else outcome.x0
            self._on_stage(StageEnd(self._names[place], place, len(self._names), latents))
