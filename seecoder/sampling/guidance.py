"""Guidance rules: how conditional and unconditional noise fields become one prediction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from seecoder.sampling.step import Step


class Branch(NamedTuple):
    """One noise field: which context the network is given, and in which of its states it runs.

    Attributes:
        context: "positive", or "negative" for the unconditional field.
        network: "main", or the name of another set of patches of a path ("damping": ScaleCrafter's weaker dilation).
    """

    context: Literal["positive", "negative"]
    network: str = "main"


POSITIVE = Branch("positive")
NEGATIVE = Branch("negative")


def classifier_free(negative: torch.Tensor, positive: torch.Tensor, scale: float) -> torch.Tensor:
    """Guided = negative + scale * (positive - negative) (Ho and Salimans, arXiv 2207.12598, Eq. 6)."""
    return (positive - negative).mul_(scale).add_(negative)  # in place: two tensors of the sample's size less


def rescaled(guided: torch.Tensor, positive: torch.Tensor, fraction: float) -> torch.Tensor:
    """Pull the standard deviation of each guided picture back towards that of its conditional prediction.

    Works on what the network predicts and on the whole fused field, one picture at a time: at zero terminal
    signal-to-noise ratio only the v-prediction still carries the over-exposure that this is meant to cure.
    Source: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", Sec. 3.4, arXiv 2305.08891.

    Args:
        guided: The guided prediction (B, C, H, W).
        positive: The conditional prediction (B, C, H, W).
        fraction: Fraction in [0, 1] of the rescaled prediction in the result.
    """
    axes = tuple(range(1, guided.ndim))
    matched = guided * (positive.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True))
    return fraction * matched + (1.0 - fraction) * guided


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance: turns the fused noise fields into the one prediction that the scheduler steps with.

    At scale 1 the unconditional network is not evaluated at all.

    Attributes:
        scale: 1 is the conditional prediction alone, 0 the unconditional one.
        rescale: Fraction in [0, 1] of the rescaled prediction.
    """

    scale: float
    rescale: float = 0.0

    def scale_at(self, step: Step) -> float:
        """The scale of a step; 1 where the guidance was ended."""
        return self.scale * step.guidance if step.guidance else 1.0

    def branches(self, step: Step) -> Sequence[Branch]:
        """The fields that this step needs, no other is evaluated: both, or the positive one alone at scale 1."""
        if self.scale_at(step) == 1.0:
            return (POSITIVE,)
        return (NEGATIVE, POSITIVE)

    def combine(self, fields: Mapping[Branch, torch.Tensor], step: Step) -> torch.Tensor:
        """The guided prediction of fields (B, C, H, W), in what the network predicts (noise, v or sample)."""
        if self.scale_at(step) == 1.0:
            return fields[POSITIVE]
        guided = classifier_free(fields[NEGATIVE], fields[POSITIVE], self.scale_at(step))
        return rescaled(guided, fields[POSITIVE], self.rescale) if self.rescale else guided
