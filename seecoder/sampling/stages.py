"""A run and its stages: each stage is a resolution, and the steps of the trajectory that are made at it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from seecoder.sampling.fields import Editor
from seecoder.sampling.guidance import ClassifierFree
from seecoder.sampling.path import Path
from seecoder.sampling.randomness import Randomness
from seecoder.sampling.stepper import Stepper
from seecoder.sampling.views import Size

Codec = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Run:
    """The request of one run, as methods see it.

    Attributes:
        latent_shape: (pictures, channels, height, width) of the result.
        native_size: (height, width) in cells that the network was trained at.
        stepper: The scheduler.
        randomness: One random stream per picture.
        guidance_scale: Of classifier-free guidance.
        guidance_rescale: Fraction in [0, 1] of the rescaled prediction.
        device: Where the sample lives.
        dtype: Data type of the sample.
        initial_noise: Unit-variance noise that the first stage starts from; None draws it.
        image_latents: Clean latents (1 or B, C, h, w) of given pictures.
        decoder: Latents to pixels.
        encoder: Pixels to latents.
        unet: The network that methods may patch.
    """

    latent_shape: tuple[int, int, int, int]
    native_size: Size
    stepper: Stepper
    randomness: Randomness
    guidance_scale: float
    guidance_rescale: float
    device: torch.device
    dtype: torch.dtype
    initial_noise: torch.Tensor | None = None
    image_latents: torch.Tensor | None = None
    decoder: Codec | None = None
    encoder: Codec | None = None
    unet: Any = None

    @property
    def size(self) -> Size:
        """(height, width) of the result in cells."""
        return self.latent_shape[2], self.latent_shape[3]

    def noise(self, size: Size) -> torch.Tensor:
        """Fresh unit-variance noise (B, C, *size), each picture's from its own stream."""
        return self.randomness.normal((*self.latent_shape[:2], *size), self.device, self.dtype)

    def first_sample(self, size: Size) -> torch.Tensor:
        """The sample at step 0: the given noise, or fresh noise, at the scheduler's first noise level.

        Raises:
            ValueError: If `latents` were given in another shape than the first stage has.
        """
        noise = self.initial_noise
        if noise is None:
            noise = self.noise(size)
        elif tuple(noise.shape) != (*self.latent_shape[:2], *size):
            raise ValueError(
                f"`latents` has shape {tuple(noise.shape)}; the first stage of this run needs "
                f"{(*self.latent_shape[:2], *size)}. Give noise of that shape, or a generator."
            )
        return noise * self.stepper.initial_scale


@dataclass(frozen=True)
class StageStart:
    """How a stage begins.

    Attributes:
        latents: The sample (B, C, H, W) at its first step.
        editors: The editors of the stage, which hold their references.
    """

    latents: torch.Tensor
    editors: Sequence[Editor] = ()


@dataclass(frozen=True)
class Outcome:
    """What a step or a stage reached.

    Attributes:
        latents: The sample (B, C, H, W).
        x0: The last prediction of the clean latents, (B, C, H, W).
    """

    latents: torch.Tensor
    x0: torch.Tensor


@dataclass(frozen=True)
class Stage:
    """One resolution, from one step of the trajectory to another.

    Attributes:
        name: Shown with the progress.
        latent_size: (height, width) in cells.
        steps: Consecutive steps of the whole trajectory.
        begin: (run, outcome of the stage before or None) -> how this stage starts.
        paths: Their weights add up to 1.
        guidance: The rule of this stage.
        finish: Applied to the sample after the last step.
    """

    name: str
    latent_size: Size
    steps: range
    begin: Callable[[Run, Outcome | None], StageStart]
    paths: Sequence[Path]
    guidance: ClassifierFree
    finish: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def keyed(self) -> bool:
        """Whether one key per picture has to be drawn from the random streams."""
        return any(path.keyed for path in self.paths)
