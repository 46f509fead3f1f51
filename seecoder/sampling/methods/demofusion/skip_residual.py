"""DemoFusion's skip residual: in every step of a phase the sample is drawn towards the noised enlargement (Sec. 3.3).

The weight of the enlargement is almost 1 in the first steps, which then say almost nothing about the result. Such dead
steps need not be computed.

All weights of DemoFusion follow one cosine, kappa, which falls from 1 in pure noise to 0 in the clean sample; each part
raises it to an exponent of its own (Du et al., CVPR 2024, arXiv 2311.16973).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from seecoder.sampling.fields import EditedSample, Editor, Evaluator
from seecoder.sampling.step import Step
from seecoder.sampling.stepper import Stepper

_LARGE = 0.01  # from this weight on, earlier predictions are about another sample


def cosine_decay(timestep: float, num_train_timesteps: int) -> float:
    """kappa_t = (1 + cos(pi * (T - t) / T)) / 2: 1 at t = T, 0 at t = 0 (Eq. 5)."""
    return 0.5 * (1.0 + math.cos(math.pi * (num_train_timesteps - timestep) / num_train_timesteps))


def skip_weight(kappa: float, cosine_scale_1: float) -> float:
    """c1 = kappa^a1: the weight of the noised enlargement in the sample (Eq. 4)."""
    return kappa**cosine_scale_1


def skip_residual(latents: torch.Tensor, noised: torch.Tensor, weight: float) -> torch.Tensor:
    """New z = (1 - c1) * z + c1 * z' (Eq. 4)."""
    return (1.0 - weight) * latents + weight * noised


def influence(skip_weights: Sequence[float]) -> list[float]:
    """The linear weight of every step's prediction in the final sample: the product of (1 - c1) over later steps."""
    weights, product = [], 1.0
    for weight in reversed(skip_weights):
        weights.append(product)
        product *= 1.0 - weight
    return weights[::-1]


def first_live_step(skip_weights: Sequence[float], threshold: float) -> int:
    """The first step whose influence on the final sample reaches `threshold`."""
    return next(i for i, weight in enumerate(influence(skip_weights)) if weight >= threshold)


@dataclass(frozen=True)
class SkipResidual(Editor):
    """Draws the sample towards the noised enlargement of the phase before.

    Attributes:
        reference: The enlargement, clean latents (B, C, h, w).
        noise: One noise tensor for the whole phase.
        weight: The factor c1 of a step.
        stepper: Noises the reference to the step.
    """

    reference: torch.Tensor
    noise: torch.Tensor
    weight: Callable[[Step], float]
    stepper: Stepper

    def is_large(self, step: Step) -> bool:
        """Whether the reference's weight is above one percent."""
        return self.weight(step) > _LARGE

    def apply(self, latents: torch.Tensor, step: Step, evaluator: Evaluator) -> EditedSample:
        """The sample of Eq. 4."""
        noised = self.stepper.add_noise(self.reference, self.noise, step.index)
        return EditedSample(skip_residual(latents, noised, self.weight(step)))
