"""RectifiedHR: one trajectory that changes its resolution near its end.

Paper: Yang et al., "RectifiedHR: Enable Efficient High-Resolution Image Generation via Energy Rectification", 2025,
arXiv 2503.02537. At 0.8 of the trajectory (and at 0.9 for more than twice the native side) the predicted clean latents
are decoded, enlarged, encoded and noised to the next step. The fresh noise costs the latents energy, which a much
higher guidance scale gives back: 5 becomes 30 after the first change and 50 after the second.

With a method that lets the network see the whole of a larger sample (ScaleCrafter, HiDiffusion) nothing is repeated
and the steps that are left draw real detail, so that no energy is lost: the default of such a composition is no boost.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

from seecoder.checks import check, number, optional, some_of
from seecoder.presets import num_switches, scale_over
from seecoder.sampling.methods.enlargement import SPACE, Space, check_enlargement, enlarged
from seecoder.sampling.methods.setting_rules import TRAJECTORY_FRACTION
from seecoder.sampling.recipe import Recipe, StagesMethod
from seecoder.sampling.sizes import base_size, scaled_size
from seecoder.sampling.stages import Outcome, Run, Stage, StageStart
from seecoder.sampling.views import Size

PUBLISHED_BOOST = (6.0, 10.0)
NO_BOOST = (1.0, 1.0)  # where the network knows larger samples


@dataclass(frozen=True)
class RectifiedHR(StagesMethod):
    """Settings of RectifiedHR.

    Attributes:
        switch_at: Fractions of the trajectory at which the resolution changes; as many as the scale needs are used.
            Later is cheaper and safer, earlier leaves more steps for detail.
        guidance_boost: Factor on the guidance scale after each change. None is the published 30 / 5 and 50 / 5, and
            with a changed network none. A scale of 1 stays 1.
        resize_in: "pixels" (published; needs the run's decoder and encoder), or "latents".
    """

    starts_whole: ClassVar[bool] = False

    switch_at: Sequence[float] = (0.8, 0.9)
    guidance_boost: Sequence[float] | None = None
    resize_in: Space = "pixels"

    def __post_init__(self) -> None:
        check(
            self,
            switch_at=some_of(
                TRAJECTORY_FRACTION, "one or more fractions of the trajectory, 0 to 1, such as (0.8, 0.9)", minimum=1
            ),
            guidance_boost=optional(some_of(number(0.0, above_minimum=True), "factors above 0, such as (6.0, 10.0)")),
            resize_in=SPACE,
        )

    def boosts(self, *, network_changes: bool = False) -> Sequence[float]:
        """The factors on the guidance scale after each change."""
        default = NO_BOOST if network_changes else PUBLISHED_BOOST
        return default if self.guidance_boost is None else self.guidance_boost

    def sizes(self, size: Size, native_size: Size) -> list[Size]:
        """(height, width) of the stages: at most doubling from one to the next while there are switches left."""
        scale = scale_over(size, native_size)
        if scale <= 1.0:
            return [size]
        count = num_switches(scale, len(self.switch_at))
        factors = [scale ** (place / count) / scale for place in range(1, count)]
        return [base_size(size, native_size), *(scaled_size(size, factor, native_size) for factor in factors), size]

    def plan(self, run: Run, recipe: Recipe) -> list[Stage]:
        """One stage for every resolution; together they are one trajectory."""
        sizes = self.sizes(run.size, run.native_size)
        fractions = self.switch_at
        boosts = self.boosts(network_changes=recipe.network is not None)
        self._check(run, len(sizes) - 1, len(fractions), len(boosts))
        count = len(run.stepper)
        switches = [run.stepper.whole_step(round(fraction * count)) for fraction in fractions[: len(sizes) - 1]]
        starts = [0, *switches, count]
        if any(low >= high for low, high in pairwise(starts)):
            raise ValueError(f"`switch_at`={tuple(fractions)} leaves a stage without steps; use more steps.")
        first = recipe.base_stage(run, sizes[0], _name(0, sizes), in_windows=False)
        stages = [replace(first, steps=range(run.first_step, starts[1]))]
        for place, size in enumerate(sizes[1:], start=1):
            steps, scale = range(max(run.first_step, starts[place]), starts[place + 1]), run.guidance_scale
            boosted = replace(run, guidance_scale=scale if scale == 1.0 else scale * boosts[place - 1])
            stages.append(self._later_stage(boosted, recipe, size, _name(place, sizes), steps))
        return [stage for stage in stages if stage.steps]  # a picture may be put in after a change

    def _later_stage(self, run: Run, recipe: Recipe, size: Size, name: str, steps: range) -> Stage:

        def begin(run: Run, before: Outcome | None) -> StageStart:
            if before is None:
                return run.first_start(size)
            x0, noise = enlarged(run, before.x0, size, self.resize_in), run.noise(size)
            return StageStart(run.stepper.add_noise(x0, noise, steps.start), noise=noise)

        return Stage(name, size, steps, begin, recipe.paths(run, size), recipe.guidance(run, size))

    def _check(self, run: Run, switches: int, fractions: int, boosts: int) -> None:
        if boosts < min(fractions, switches):
            raise ValueError(f"`guidance_boost` has {boosts} factors; give one for each change that `switch_at` names.")
        if switches:
            check_enlargement("RectifiedHR", run, self.resize_in)


def _name(place: int, sizes: Sequence[Size]) -> str:
    return f"stage {place + 1} of {len(sizes)}"
