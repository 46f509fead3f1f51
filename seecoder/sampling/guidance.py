"""Guidance rules: how conditional and unconditional noise fields become one prediction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from seecoder.sampling.parts import Branch, Step

POSITIVE = Branch("positive")
NEGATIVE = Branch("negative")


def classifier_free(negative: torch.Tensor, positive: torch.Tensor, scale: float) -> torch.Tensor:
    """Guided = negative + scale * (positive - negative) (Ho and Salimans, arXiv 2207.12598, Eq. 6)."""
    return negative + scale * (positive - negative)


def rescaled(guided: torch.Tensor, positive: torch.Tensor, share: float) -> torch.Tensor:
    """Pull the standard deviation of each guided picture back towards that of its conditional prediction.

    Works on the network's own parametrisation and on the whole fused field, one picture at a time: at zero terminal
    signal-to-noise ratio only the v-prediction still carries the over-exposure that this is meant to cure.
    Source: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", Sec. 3.4, arXiv 2305.08891.
    """
    axes = tuple(range(1, guided.ndim))
    matched = guided * (positive.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True))
    return share * matched + (1.0 - share) * guided


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance; at scale 1 the unconditional network is not evaluated at all.

    Attributes:
        scale: 1 is the conditional prediction alone, 0 the unconditional one.
        rescale: Share in [0, 1] of the rescaled prediction.
    """

    scale: float
    rescale: float = 0.0

    def branches(self, step: Step) -> Sequence[Branch]:
        """The negative field only where the scale is not 1, the positive one only where it is not 0."""
        if self.scale == 1.0:
            return (POSITIVE,)
        return (NEGATIVE, POSITIVE)

    def combine(self, fields: Mapping[Branch, torch.Tensor], step: Step) -> torch.Tensor:
        """The guided prediction."""
        if self.scale == 1.0:
            return fields[POSITIVE]
        guided = classifier_free(fields[NEGATIVE], fields[POSITIVE], self.scale)
        return rescaled(guided, fields[POSITIVE], self.rescale) if self.rescale else guided
