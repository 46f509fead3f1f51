"""What a run tells its caller: every finished step, and every finished stage."""

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
