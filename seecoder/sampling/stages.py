"""A run and its stages, each a resolution and the steps that are made at it; what of them its caller is told."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from seecoder.sampling.fields import Editor
from seecoder.sampling.guidance import ClassifierFree
from seecoder.sampling.image_to_image import StartImage
from seecoder.sampling.path import Path
from seecoder.sampling.randomness import Randomness
from seecoder.sampling.stepper import Stepper
from seecoder.sampling.views import Size

Codec = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class StageStart:
    """How a stage begins.

    Attributes:
        latents: The sample (B, C, H, W) at its first step.
        editors: The editors of the stage, which hold their references.
        noise: The unit-variance noise that `latents` holds; None if nobody knows it.
    """

    latents: torch.Tensor
    editors: Sequence[Editor] = ()
    noise: torch.Tensor | None = None


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
        image_latents: Clean latents (1 or B, C, h, w) of given pictures, to be enlarged.
        start_image: A picture to be redrawn.
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
    start_image: StartImage | None = None
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

    @property
    def kept_image(self) -> StartImage | None:
        """The picture of which a mask keeps a part, if there is one."""
        return None if self.start_image is None or self.start_image.mask is None else self.start_image

    @property
    def first_step(self) -> int:
        """Where the trajectory begins: step 0, or for a picture that is redrawn the step that its strength leaves."""
        return 0 if self.start_image is None else self.start_image.first_step(self.stepper)

    def first_start(self, size: Size, editors: Sequence[Editor] = ()) -> StageStart:
        """How the first stage begins: with the given noise, or fresh noise, and the picture that the run redraws.

        Args:
            size: (height, width) of the stage in cells.
            editors: Those of the stage.

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
        if self.start_image is None or self.first_step == 0:
            return StageStart(noise * self.stepper.initial_scale, editors, noise)
        x0 = self.start_image.latents(size).to(noise)
        return StageStart(self.stepper.add_noise(x0, noise, self.first_step), editors, noise)


@dataclass
class Outcome:
    """What a step or a stage reached; whoever watches a run may change it.

    Attributes:
        latents: The sample (B, C, H, W).
        x0: The prediction of the clean latents (B, C, H, W) where a stage ends inside the trajectory; nobody asks for
            it anywhere else, and it is the sample.
    """

    latents: torch.Tensor
    x0: torch.Tensor

    def change(self, latents: torch.Tensor, alpha: float) -> None:
        """Go on from another sample, whose noise is taken to be the same.

        Args:
            latents: The sample (B, C, H, W).
            alpha: Factor on the clean latents in a sample of this step.
        """
        self.x0 = self.x0 + (latents - self.latents) / alpha
        self.latents = latents


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
        guidance: Factor on the guidance scale of the run; 0 is no guidance.
    """

    latents: torch.Tensor
    context: torch.Tensor
    negative_context: torch.Tensor | None
    guidance: float = 1.0


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
