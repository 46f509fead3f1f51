"""Which shape each picture is trained at: buckets of about equal area, from the sizes of the pictures.

Podell et al., "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis" (2023), section 2.3.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seecoder.checks import Rule, check, number, some_of, whole

_MIN_SIDE = 32  # pixels; of less an encoder sees nothing
_OTHER_RESOLUTION = 100.0  # how much worse another resolution is than other proportions, whose logarithms stay below 12


@dataclass(frozen=True)
class Buckets:
    """Shapes for pictures of all proportions; a picture's shape depends on nothing but its size and these settings.

    It gets the largest resolution whose area it has (the smallest if it has none), and the shape there whose
    proportions are nearest to its own.

    Attributes:
        group: Consecutive samples of one shape: a multiple of `batch_size`. The order of samples depends on it, so it
            has to stay when a run goes on with another `batch_size`.
        resolutions: Sides of the squares whose areas shapes have at most.
        step: Heights and widths are multiples of it.
        max_aspect: Longer side of a shape by its shorter side, at most.
    """

    group: int = 16
    resolutions: tuple[int, ...] = (512,)
    step: int = 64
    max_aspect: float = 2.0

    def __post_init__(self) -> None:
        eighths = Rule(lambda step: whole(8).accepts(step) and step % 8 == 0, "a multiple of 8")
        check(self, group=whole(1), step=eighths, max_aspect=number(1.0))
        least = -(-_MIN_SIDE // self.step) * self.step
        sides = some_of(whole(least), f"sides of squares in pixels, from {least} up (`step`={self.step})", minimum=1)
        check(self, resolutions=sides)
        object.__setattr__(self, "resolutions", tuple(self.resolutions))  # a list of a configuration has no hash

    @property
    def name(self) -> str:
        """All that a picture's shape depends on beside its size: caches are bound to it."""
        squares = ", ".join(f"{side} x {side}" for side in sorted(set(self.resolutions)))
        return f"buckets of {squares} pixels in steps of {self.step}, up to {float(self.max_aspect)} : 1"

    @cached_property
    def shapes(self) -> NDArray[np.int64]:
        """All shapes that there may be: (K, 2) heights and widths in pixels, none below 32."""
        found = set()
        for side in self.resolutions:
            for long in range(self.step, int(side * self.max_aspect) + 1, self.step):
                short = side * side // long // self.step * self.step
                if min(long, short) >= _MIN_SIDE and max(long, short) <= self.max_aspect * min(long, short):
                    found |= {(long, short), (short, long)}
        return np.array(sorted(found), dtype=np.int64)

    def choose(self, sizes: NDArray[Any]) -> NDArray[np.int64]:
        """Choose shapes for pictures: (N, 2) heights and widths -> (N, 2); no size, 0 x 0, counts as a square."""
        own, sides = np.maximum(sizes, 1).astype(np.float64), np.sort(np.array(self.resolutions, dtype=np.float64))
        resolution = np.maximum(np.searchsorted(sides**2, own.prod(1), side="right") - 1, 0)
        of_shape = np.searchsorted(sides**2, self.shapes.prod(1))
        proportions = np.log(own[:, :1] / own[:, 1:]) - np.log(self.shapes[:, 0] / self.shapes[:, 1])
        return self.shapes[(np.abs(proportions) + _OTHER_RESOLUTION * (resolution[:, None] != of_shape)).argmin(1)]


@lru_cache(4096)
def bucket_of(buckets: Buckets, height: int, width: int) -> tuple[int, int]:
    """The shape for one picture; sizes repeat, so it is remembered."""
    (shape,) = buckets.choose(np.array([[height, width]])).tolist()
    return shape[0], shape[1]


def describe_enlarged(sizes: NDArray[Any], shapes: NDArray[Any] | int) -> str:
    """Say how many pictures of (N, 2) sizes are enlarged to (N, 2) shapes, or to squares of a side; empty for none."""
    scales = (shapes / np.where(sizes > 0, sizes, np.inf)).max(1)
    count = (scales > 1).sum()
    return f"{count:,} of {len(sizes):,} pictures are enlarged, up to {scales.max():.3g} times" if count else ""


def describe_waste(sizes: NDArray[Any], shapes: NDArray[np.int64], group: int) -> str:
    """Say what it costs to train pictures of these (N, 2) sizes at these (N, 2) shapes, in groups."""
    known, counts = sizes.min(1) > 0, np.unique(shapes, axis=0, return_counts=True)[1]
    larger = describe_enlarged(sizes, shapes) or "no picture is enlarged"
    own, shapes = sizes[known].astype(np.float64), shapes[known]
    scales = (shapes / own).max(1)
    cut, square = (1 - kept.mean() for kept in (shapes.prod(1) / (scales**2 * own.prod(1)), own.min(1) / own.max(1)))
    return (
        f"{len(counts)} shapes in groups of {group}: no sample is padded, dropped or repeated; {cut:.1%} of the pixels "
        f"are cut away (by squares {square:.1%}), {larger}, {(~known).sum():,} without a size; "
        f"{counts[counts < group].sum():,} in shapes of less than a group; at most {len(counts) * (group - 1):,} wait "
        "for the next epoch to fill a group"
    )
