"""From the bytes of a sample to what a training step takes: a square uint8 picture, cut the same way on every run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from data.shards.plan import derive_seed
from seecoder.checks import check, choice, whole
from seecoder.images.gate import load_image


class UnusableSample(ValueError):
    """A sample that was read but cannot be used.

    Attributes:
        reason: Category, for counting.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Transform(Protocol):
    """What turns a sample into an example; picklable, and a pure function of its arguments."""

    @property
    def members(self) -> frozenset[str]:
        """Kinds of member that it wants beside the picture."""
        ...

    def __call__(self, sample: Mapping[str, bytes], epoch: int, sample_id: int) -> dict[str, Any]:
        """Make an example of a sample, the picture first; tensors are stacked into the batch, all else is listed.

        Raises:
            ImageError: The picture is bad.
            UnusableSample: Something else is.
        """
        ...


@dataclass(frozen=True)
class SquareImage:
    """Cuts a square from the picture and scales it; gives `pixels`, uint8 (3, size, size).

    Attributes:
        size: Side of the result in pixels.
        crop: "center", or "random": a place of its own for each (seed, epoch, sample).
        flip: Mirror left to right for half of (seed, epoch, sample).
        seed: Seed of crop and flip.
        max_pixels: Larger pictures are refused before they are decoded.

    Raises:
        ValueError: `size` or `crop` is not accepted.
    """

    size: int
    crop: str = "center"
    flip: bool = False
    seed: int = 0
    max_pixels: int = 25_000_000

    def __post_init__(self) -> None:
        check(self, size=whole(1), crop=choice("center", "random"))

    @property
    def members(self) -> frozenset[str]:
        """Nothing but the picture."""
        return frozenset()

    def __call__(self, sample: Mapping[str, bytes], epoch: int, sample_id: int) -> dict[str, Any]:
        """Make an example."""
        pixels = load_image(next(iter(sample.values())), max_pixels=self.max_pixels)
        return {"pixels": self._square(pixels, epoch, sample_id)}

    def _square(self, pixels: Tensor, epoch: int, sample_id: int) -> Tensor:
        height, width = pixels.shape[1:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        if self.crop == "random":
            top = derive_seed(self.seed, "top", epoch, sample_id) % (height - side + 1)
            left = derive_seed(self.seed, "left", epoch, sample_id) % (width - side + 1)
        # Cut first: scaling a 10 x 100,000 picture up first would take gigabytes.
        pixels = pixels[:, top : top + side, left : left + side]
        if side != self.size:
            shape = (self.size, self.size)
            pixels = functional.interpolate(pixels[None], shape, mode="bicubic", antialias=True, align_corners=False)[0]
            pixels.clamp_(0, 1)  # bicubic overshoots at edges
        levels = pixels.mul_(255).round_().to(torch.uint8)  # in place: `load_image` gave these pixels to us
        if self.is_flipped(epoch, sample_id):
            levels = levels.flip(2)
        return levels.contiguous()

    def is_flipped(self, epoch: int, sample_id: int) -> bool:
        """Whether the sample is mirrored in this epoch."""
        return self.flip and derive_seed(self.seed, "flip", epoch, sample_id) % 2 == 1
