"""Which methods go together, and how a list of them becomes one plan of stages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from seecoder.sampling.guidance import ClassifierFree
from seecoder.sampling.parts import Opening, Outcome, Path, Run, Stage
from seecoder.sampling.views import full_view


class Method(Protocol):
    """A published sampling method: frozen settings."""


@dataclass(frozen=True)
class Recipe:
    """The methods of one run by the part they play."""

    def plan(self, run: Run) -> list[Stage]:
        """The stages of the run."""
        if run.picture_latents is not None:
            raise ValueError("`picture_latents` needs a method that starts from a picture, such as DemoFusion().")
        return [single_stage(run, [full_frame()])]


def full_frame() -> Path:
    """The path that looks at the whole sample at once."""
    return Path(views=lambda step, picture: (full_view(step.latent_size),))


def single_stage(run: Run, paths: Sequence[Path]) -> Stage:
    """One trajectory from noise to the result, at the result's size."""

    def begin(run: Run, outcome: Outcome | None) -> Opening:
        return Opening(run.first_sample(run.size))

    guidance = ClassifierFree(run.guidance_scale, run.guidance_rescale)
    return Stage("sampling", run.size, range(len(run.stepper)), begin, paths, guidance)


def compose(method: Method | Sequence[Method] | None) -> Recipe:
    """The recipe of one method, of several, or of none."""
    if method is not None:
        raise TypeError(f"`method`={method!r} is not a sampling method.")
    return Recipe()
