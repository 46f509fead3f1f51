"""RectifiedHR: one trajectory that changes its resolution near its end.

Paper: Yang et al., "RectifiedHR: Enable Efficient High-Resolution Image Generation via Energy Rectification", 2025,
arXiv 2503.02537. At 0.8 of the trajectory (and at 0.9 for more than twice the native side) the predicted original is
decoded, enlarged, encoded and noised to the next step. The fresh noise costs the latents energy, which a much higher
guidance scale gives back: 5 becomes 30 after the first change and 50 after the second.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch.nn import functional

from seecoder.sampling.filters import resized
from seecoder.sampling.geometry import base_size, scale_over, scaled_size
from seecoder.sampling.parts import Opening, Outcome, Run, Stage
from seecoder.sampling.views import Size

if TYPE_CHECKING:
    from seecoder.sampling.composition import Recipe


@dataclass(frozen=True)
class RectifiedHR:
    """Settings of RectifiedHR.

    Attributes:
        switch_at: Shares of the trajectory at which the resolution changes; as many as the scale needs are used.
        guidance_boost: Factor on the guidance scale after each change (published: 30 / 5 and 50 / 5). A scale of 1
            stays 1.
        resize_in: "pixels" (published; needs the run's decoder and encoder), or "latents".
    """

    role: ClassVar[str] = "stages"
    starts_whole: ClassVar[bool] = False

    switch_at: Sequence[float] = (0.8, 0.9)
    guidance_boost: Sequence[float] = (6.0, 10.0)
    resize_in: Literal["pixels", "latents"] = "pixels"

    def sizes(self, size: Size, native_size: Size) -> list[Size]:
        """(height, width) of the stages: at most doubling from one to the next while there are switches left."""
        scale = scale_over(size, native_size)
        if scale <= 1.0:
            return [size]
        switches = min(max(1, math.ceil(math.log2(scale) - 0.05)), len(self.switch_at))
        factors = [scale ** (place / switches) / scale for place in range(1, switches + 1)]
        return [base_size(size, native_size), *(scaled_size(size, factor, native_size) for factor in factors)]

    def stages(self, run: Run, recipe: "Recipe") -> list[Stage]:
        """One stage for every resolution; together they are one trajectory.

        Raises:
            ValueError: If the settings do not fit, or the run lacks what they need.
        """
        sizes = self.sizes(run.size, run.native_size)
        self._check(run, len(sizes) - 1)
        count = len(run.stepper)
        starts = [0, *(_boundary(run, round(share * count)) for share in self.switch_at[: len(sizes) - 1]), count]
        if any(low >= high for low, high in pairwise(starts)):
            raise ValueError(f"`switch_at`={tuple(self.switch_at)} leaves a stage without steps; use more steps.")
        first = recipe.base_stage(run, sizes[0], _name(0, sizes), in_windows=False)
        stages = [replace(first, steps=range(starts[0], starts[1]))]
        for place, size in enumerate(sizes[1:], start=1):
            stages.append(self._later_stage(run, recipe, size, place, sizes, range(starts[place], starts[place + 1])))
        return stages

    def _later_stage(
        self, run: Run, recipe: "Recipe", size: Size, place: int, sizes: Sequence[Size], steps: range
    ) -> Stage:
        scale = run.guidance_scale if run.guidance_scale == 1.0 else run.guidance_scale * self.guidance_boost[place - 1]

        def begin(run: Run, outcome: Outcome | None) -> Opening:
            if outcome is None:
                raise ValueError("A stage after the first needs the outcome of the one before.")
            original = self._enlarged(run, outcome.original, size)
            return Opening(run.stepper.add_noise(original, run.noise(size), steps.start))

        guidance = recipe.guidance(replace(run, guidance_scale=scale), size)
        return Stage(_name(place, sizes), size, steps, begin, recipe.paths(run, size), guidance)

    def _enlarged(self, run: Run, original: torch.Tensor, size: Size) -> torch.Tensor:
        if self.resize_in == "latents" or run.decoder is None or run.encoder is None:
            return resized(original, size)
        pixels = run.decoder(original)
        cell = pixels.shape[-1] // original.shape[-1]
        large = functional.interpolate(
            pixels, size=(size[0] * cell, size[1] * cell), mode="bilinear", align_corners=False
        )
        return run.encoder(large).to(original.dtype)

    def _check(self, run: Run, switches: int) -> None:
        if run.picture_latents is not None:
            raise ValueError("`picture_latents` needs a method that starts from a picture. Use DemoFusion().")
        if len(self.guidance_boost) < len(self.switch_at):
            raise ValueError(f"`guidance_boost` has {len(self.guidance_boost)} factors, one per entry of `switch_at`.")
        if switches and self.resize_in == "pixels" and (run.decoder is None or run.encoder is None):
            raise ValueError('RectifiedHR() needs `decoder` and `encoder`. Give them, or set resize_in="latents".')
        if switches:
            run.stepper.require_restarts()


def _boundary(run: Run, index: int) -> int:
    while not run.stepper.is_boundary(index):
        index -= 1
    return index


def _name(place: int, sizes: Sequence[Size]) -> str:
    return f"stage {place + 1} of {len(sizes)}"
