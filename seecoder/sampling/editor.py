"""An editor changes the sample before the noise is predicted."""

from abc import ABC, abstractmethod

import torch

from seecoder.sampling.fields import EditedSample, Evaluator
from seecoder.sampling.step import Step


class Editor(ABC):
    """Changes the sample before the noise is predicted."""

    @abstractmethod
    def is_large(self, step: Step) -> bool:
        """Whether the change is so large that a multistep scheduler must forget its history."""

    @abstractmethod
    def apply(self, latents: torch.Tensor, step: Step, evaluator: Evaluator) -> EditedSample:
        """The changed sample.

        Args:
            latents: The sample (B, C, H, W).
            step: Where the run is.
            evaluator: May be used to look at what the network would predict.
        """
