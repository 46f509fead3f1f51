"""Learning rates as functions of the step: nothing to save, so a rate from the command line always takes effect."""

import math

from train.settings import OptimizerSettings


def learning_rate(step: int, max_steps: int, settings: OptimizerSettings) -> float:
    """Learning rate of one optimizer step.

    Args:
        step: Optimizer steps done before this one; the first step is 0.
        max_steps: Optimizer steps of the whole run; where "cosine" ends.
        settings: Peak rate and shape.

    Returns:
        The rate; with warm-up the first step already has lr / warmup_steps, so that no step is lost.
    """
    rise = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    return settings.lr * rise * _decay(step, max_steps, settings)


def turning_points(max_steps: int, settings: OptimizerSettings) -> dict[int, float]:
    """Learning rates by step where they say most: first, after warm-up, in the middle, at milestones, last.

    Args:
        max_steps: Optimizer steps of the whole run.
        settings: Peak rate and shape.
    """
    marks = {0, settings.warmup_steps, max_steps // 2, max_steps - 1, *settings.milestones}
    return {step: learning_rate(step, max_steps, settings) for step in sorted(marks) if step < max_steps}


def _decay(step: int, max_steps: int, settings: OptimizerSettings) -> float:
    if settings.schedule == "steps":
        return settings.gamma ** sum(step >= milestone for milestone in settings.milestones)
    if settings.schedule == "cosine":
        start = settings.decay_start * max_steps
        progress = min(1.0, max(0.0, (step - start) / max(1.0, max_steps - start)))
        return settings.final_factor + (1 - settings.final_factor) * 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0
