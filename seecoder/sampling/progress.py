"""What a run tells its caller, every finished step and stage, and what the caller may change then."""

from dataclasses import dataclass

import torch


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
        latents: The sample after the step, (B, C, h, w) of the stage's size; `Changes` gives it back changed.
    """

    stage: str
    stage_index: int
    num_stages: int
    step: int
    num_steps: int
    timestep: float
    latents: torch.Tensor


@dataclass(frozen=True)
class Changes:
    """What a caller wants to go on with after a step, each of the shape that it had.

    Attributes:
        latents: The sample (B, C, h, w).
        context: The context (1 or B, tokens, width) of all further steps.
        negative_context: That of the unconditional branch.
    """

    latents: torch.Tensor
    context: torch.Tensor
    negative_context: torch.Tensor | None


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
