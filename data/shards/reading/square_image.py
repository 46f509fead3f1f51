"""From the bytes of a sample to what a training step takes: a uint8 picture, cut the same way on every run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from data.shards.buckets import Buckets, bucket_of
from data.shards.manifest import IMAGE_MEMBERS
from data.shards.plan import derive_seed
from data.shards.reading.levels import load_levels
from seecoder.checks import check, choice, whole
from seecoder.images.masks import load_mask


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
    """Cuts a square, or the shape of the picture's bucket, from the picture and scales it.

    Gives `pixels`, uint8 (3, height, width). With one of the last three attributes also `size_ids`, (6,) int64, as
    SDXL's UNet reads them (Podell et al. 2023, section 2.2): height and width of the picture, top and left of the crop
    in the scaled picture, the shape. With buckets or a reference also `frames`, of the same shape: the whole of the
    picture or of the reference, which the encoder sees. With a mask also `mask`, uint8 (1, height, width).

    Attributes:
        size: Side of the square in pixels.
        crop: "center", or "random": a place of its own for each (seed, epoch, sample).
        flip: Mirror left to right for half of (seed, epoch, sample).
        seed: Seed of crop and flip.
        max_pixels: Larger pictures are refused before they are decoded.
        buckets: Shapes to choose from, in place of the square.
        reference: Name of the member that the encoder sees, such as "reference" (`000.reference.jpg`).
        mask: Name of the member, as large as the picture, that is white, or painted on transparency, where the loss
            counts.

    Raises:
        ValueError: `size` or `crop` is not accepted.
    """

    size: int
    crop: str = "center"
    flip: bool = False
    seed: int = 0
    max_pixels: int = 25_000_000
    buckets: Buckets | None = None
    reference: str | None = None
    mask: str | None = None

    def __post_init__(self) -> None:
        check(self, size=whole(1), crop=choice("center", "random"))

    @property
    def members(self) -> frozenset[str]:
        """Reference and mask, in any format; else nothing but the picture."""
        return frozenset(f"{name}.{kind}" for name in (self.reference, self.mask) if name for kind in IMAGE_MEMBERS)

    @property
    def cut_name(self) -> str:
        """How pictures are cut: caches are bound to it."""
        return self.crop if self.buckets is None else f"{self.crop} in {self.buckets.name}"

    @property
    def unit(self) -> int:
        """Pixels of which every side of what is cut is a multiple."""
        return self.size if self.buckets is None else self.buckets.step

    def __call__(self, sample: Mapping[str, bytes], epoch: int, sample_id: int) -> dict[str, Any]:
        """Make an example."""
        picture = load_levels(next(iter(sample.values())), max_pixels=self.max_pixels)
        is_flipped, shape = self.is_flipped(epoch, sample_id), (self.size, self.size)
        if self.buckets is not None:
            shape = bucket_of(self.buckets, *picture.shape[1:])
        window = self.window(picture, shape, epoch, sample_id)
        example = {"pixels": self.cut(picture, window, shape, is_flipped)}
        if self.buckets or self.reference or self.mask:
            top, left, rows, columns = window
            left = picture.shape[2] - left - columns if is_flipped else left
            corner = round(top * shape[0] / rows), round(left * shape[1] / columns)
            example["size_ids"] = torch.tensor([*picture.shape[1:], *corner, *shape])
        if self.buckets or self.reference:
            seen = self._member(sample, self.reference) if self.reference else picture
            example["frames"] = self.cut(seen, (0, 0, seen.shape[1], seen.shape[2]), shape, is_flipped)
        if self.mask:
            mask = self._member(sample, self.mask, load_mask, may_be_black=True, may_be_white=True)[None]
            if mask.shape[1:] != picture.shape[1:] or not (cut := self.cut(mask, window, shape, is_flipped)).any():
                raise UnusableSample("bad mask", "its mask is black where the picture is, or of another size")
            example["mask"] = cut
        return example

    def _member(
        self, sample: Mapping[str, bytes], name: str, load: Callable[..., Tensor] = load_levels, **options: bool
    ) -> Tensor:
        kind = next((f"{name}.{kind}" for kind in IMAGE_MEMBERS if f"{name}.{kind}" in sample), None)
        if kind is None:
            raise UnusableSample("missing member", f"it has no `{name}.{IMAGE_MEMBERS[0]}`, nor of another kind")
        return load(sample[kind], max_pixels=self.max_pixels, **options)

    def window(self, pixels: Tensor, shape: tuple[int, int], epoch: int, sample_id: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of the largest part of a picture that has the proportions of `shape`."""
        height, width = pixels.shape[1:]
        rows = min(height, max(1, round(width * shape[0] / shape[1])))
        columns = min(width, max(1, round(height * shape[1] / shape[0])))
        top, left = (height - rows) // 2, (width - columns) // 2
        if self.crop == "random":
            top = derive_seed(self.seed, "top", epoch, sample_id) % (height - rows + 1)
            left = derive_seed(self.seed, "left", epoch, sample_id) % (width - columns + 1)
        return top, left, rows, columns

    def cut(
        self, pixels: Tensor, window: tuple[int, int, int, int], shape: tuple[int, int], is_flipped: bool
    ) -> Tensor:
        """Cut a window out of a picture, scale it to `shape` and maybe mirror it; bytes that fit stay as they are.

        With buckets it is scaled in bytes, in a fifth of the time that floats take. That is Pillow's result within one
        level: other than in floats, what overshoots the range is cut off between rows and columns, too. Squares are
        scaled in floats, because caches and runs of earlier versions are of such.
        """
        top, left, rows, columns = window
        # Cut first: scaling a 10 x 100,000 picture up first would take gigabytes.
        levels = pixels[:, top : top + rows, left : left + columns]
        if (rows, columns) != shape:
            if self.buckets is not None:
                levels = _as_bytes(levels)[None].contiguous(memory_format=torch.channels_last)[0]  # scaled fastest
            elif levels.dtype == torch.uint8:
                levels = levels.float().div_(255)
            # Rows are scaled first, of which a thin picture has millions, all of them widened.
            is_thin = rows > shape[0] and columns < shape[1]
            for sides in ((shape[0], columns), shape) if is_thin else (shape,):
                levels = functional.interpolate(levels[None], sides, mode="bicubic", antialias=True)[0]
        levels = _as_bytes(levels)
        return levels.flip(2) if is_flipped else levels

    def is_flipped(self, epoch: int, sample_id: int) -> bool:
        """Whether the sample is mirrored in this epoch."""
        return self.flip and derive_seed(self.seed, "flip", epoch, sample_id) % 2 == 1


def _as_bytes(levels: Tensor) -> Tensor:
    """Floats in [0, 1], beyond which bicubic scaling overshoots at edges, as uint8; bytes as they are."""
    return levels if levels.dtype == torch.uint8 else levels.clamp(0, 1).mul_(255).round_().to(torch.uint8)
