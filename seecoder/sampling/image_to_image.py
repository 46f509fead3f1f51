"""A picture that a run redraws: from which step on (image to image), and where (inpainting).

Image to image begins inside the trajectory, from the picture with noise (SDEdit, arXiv 2108.01073). A mask has what it
keeps put back after every step, with the stage's own noise at the level that the step reached (RePaint, arXiv
2201.09865, Eq. 8, without its resampling). Networks that read a mask are told instead (`extra_channels` of `sample`).

The arithmetic is that of diffusers' pipelines, so that the same noise gives the same latents. Two things differ: a
picture is encoded to the mode of its latents, so that no random number is spent on it; and at strength 1 image to image
starts from noise alone, too, and is text to image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from seecoder.call_rules import STRENGTH, steps_left
from seecoder.checks import FUNCTION, check, optional
from seecoder.sampling.stepper import Stepper
from seecoder.sampling.views import Size


@dataclass(frozen=True, eq=False)
class StartImage:
    """A picture that a run redraws, all of it or what a mask marks.

    A method of several stages begins with it in its first stage; a mask acts in all, at the size of each.

    Attributes:
        latents: Called as `latents(size)`: the clean latents (1 or B, C, *size) of the picture at a stage's size, which
            is (height, width) in cells.
        strength: Fraction in (0, 1] of the trajectory that is made; at 1 the run starts from noise alone.
        mask: Called as `mask(size)`: (1 or B, 1, *size), 1 in cells that are redrawn and 0 in those that are kept.
            None redraws all.
    """

    latents: Callable[[Size], torch.Tensor]
    strength: float = 1.0
    mask: Callable[[Size], torch.Tensor] | None = None

    def __post_init__(self) -> None:
        check(self, latents=FUNCTION, strength=STRENGTH, mask=optional(FUNCTION))

    def first_step(self, stepper: Stepper) -> int:
        """The step of the trajectory that the picture is put in at, 0 for strength 1.

        Raises:
            ValueError: If no step is left.
        """
        count = stepper.num_inference_steps
        return (count - steps_left(count, self.strength)) * stepper.order

    def put_back(
        self, latents: torch.Tensor, stepper: Stepper, index: int, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Put the cells that the mask keeps back into a sample.

        Args:
            latents: The sample (B, C, H, W) of step `index`.
            stepper: Knows how much noise the step has.
            index: The step; after the last the cells are clean.
            noise: The unit-variance noise that the stage began with; None for clean cells.
        """
        if self.mask is None:
            return latents
        size = (latents.shape[-2], latents.shape[-1])
        x0, mask = self.latents(size).to(latents), self.mask(size).to(latents)
        known = x0 if noise is None or index == len(stepper) else stepper.add_noise(x0, noise, index)
        return (1.0 - mask) * known + mask * latents


def masks_by_size(mask: torch.Tensor, full: Size) -> Callable[[Size], torch.Tensor]:
    """Make the `mask` of a `StartImage` from one in pixels.

    Args:
        mask: (1 or B, 1, H, W) of zeros and ones.
        full: (height, width) of the result in cells. At this size a cell has the value of its first pixel, as in
            diffusers; in smaller stages it is redrawn where anything under it is.
    """
    cells = functional.interpolate(mask, size=full)
    return lambda size: cells if size == full else functional.adaptive_max_pool2d(cells, size)
