"""The small parts that every sampling method is made of.

One step is: edit the sample, predict several noise fields (each fused from views), combine them by one guidance
rule, make one scheduler step. A method is a plan of stages; a stage names its paths, editors and guidance rule.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import torch

from seecoder.sampling.randomness import Randomness
from seecoder.sampling.stepper import Stepper
from seecoder.sampling.views import Size, View

if TYPE_CHECKING:
    from seecoder.sampling.fields import Evaluator

Denoiser = Callable[..., torch.Tensor]
Codec = Callable[[torch.Tensor], torch.Tensor]


class Branch(NamedTuple):
    """One noise field: which context the network is given, and in which of its states it runs.

    `network` is "main", or the name of another set of patches of a path ("damping": ScaleCrafter's weaker dilation).
    """

    context: Literal["positive", "negative"]
    network: str = "main"


@dataclass(frozen=True)
class Step:
    """Where a run is: everything a part may depend on."""

    index: int  # place in the whole trajectory, 0 … count - 1
    count: int  # steps of the whole trajectory
    timestep: torch.Tensor  # scalar, as the scheduler gives it
    time: float  # the same number; formulas use it, so that no step waits for an accelerator
    num_train_timesteps: int
    latent_size: Size
    native_size: Size
    stage: int = 0  # place of the stage in the plan
    keys: tuple[int, ...] = ()  # one seed per picture, for choices such as jitter; pure functions of it and the step

    def key(self, picture: int) -> int:
        """The seed of this step's choices for one picture."""
        seed = self.keys[picture] if self.keys else 0
        return (seed * 1_000_003 + self.stage * 10_007 + self.index) % 2**62


class Patch(Protocol):
    """Changes layers of a network for the duration of a `with` block and gives them back bit-identical."""

    def active(self, step: Step, size: Size) -> AbstractContextManager[None]:
        """Context in which the network is changed, for views of `size` cells at this step."""
        ...


class Planner(Protocol):
    """Says which views a path looks through."""

    def __call__(self, step: Step, picture: int) -> Sequence[View]:
        """The views of one picture at this step; together they cover all cells that the path's weight needs."""
        ...


Weight = Callable[[Step], float | torch.Tensor]
Prefilter = Callable[[torch.Tensor, Step], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Path:
    """One way of predicting noise for the whole sample, fused from views.

    Attributes:
        views: The planner.
        weight: Share of this path in the fused field: a number or a map (…, H, W); the weights of a stage's paths
            add up to 1 everywhere. None means 1.
        prefilter: What is done to the (B, C, H, W) sample before the views are cut from it.
        patches: Network changes by the name of the network state; a name that is missing here means "main".
        blend: Weights of the views where they overlap: "uniform" or "feather" (linear towards the borders).
        context: Replaces the run's positive context here (one region, one picture): (1 or B, tokens, width).
        pooled: Replaces the run's pooled vector there, likewise (SDXL): (1 or B, width).
        unconditional: Every branch is given the negative context here: the path adds detail, and no subject.
        follows_offsets: Whether an editor's per-view changes (SyncDiffusion) apply to this path's views.
        keyed: Whether the planner makes random choices (its stage then draws one key per picture).
    """

    views: Planner
    weight: Weight | None = None
    prefilter: Prefilter | None = None
    patches: Mapping[str, Sequence[Patch]] = field(default_factory=dict)
    blend: Literal["uniform", "feather"] = "uniform"
    context: torch.Tensor | None = None
    pooled: torch.Tensor | None = None
    unconditional: bool = False
    follows_offsets: bool = False
    keyed: bool = False

    def asked(self, branch: Branch) -> Branch:
        """What this path has for a branch of the guidance rule."""
        context = "negative" if self.unconditional else branch.context
        return Branch(context, branch.network if branch.network in self.patches else "main")


class Guidance(Protocol):
    """Turns the fused noise fields into the one prediction that the scheduler steps with."""

    def branches(self, step: Step) -> Sequence[Branch]:
        """The fields that this step needs; no other is evaluated."""
        ...

    def combine(self, fields: Mapping[Branch, torch.Tensor], step: Step) -> torch.Tensor:
        """(B, C, H, W) fields -> the guided prediction, in the network's own parametrisation."""
        ...


ViewOffsets = Mapping[tuple[int, View], torch.Tensor]


@dataclass(frozen=True)
class Edited:
    """What an editor made of the sample.

    Attributes:
        latents: The sample (B, C, H, W) that the scheduler will step.
        cut_from: The sample that views are cut from, where it is another one.
        offsets: What each (picture, view) adds to its cut, (C, height, width).
    """

    latents: torch.Tensor
    cut_from: torch.Tensor | None = None
    offsets: ViewOffsets = field(default_factory=dict)


class Editor(Protocol):
    """Changes the sample before the noise is predicted."""

    def is_large(self, step: Step) -> bool:
        """Whether the change is so large that a multistep scheduler must forget its history."""
        ...

    def apply(self, latents: torch.Tensor, step: Step, evaluator: "Evaluator") -> Edited:
        """The changed sample; `evaluator` may be used to look at what the network would predict."""
        ...


@dataclass(frozen=True)
class Outcome:
    """Where a stage ended: the sample, and the last prediction of the original (the picture's latents)."""

    latents: torch.Tensor
    original: torch.Tensor


@dataclass(frozen=True)
class Opening:
    """How a stage begins: the sample at its first step, and the editors that hold its references."""

    latents: torch.Tensor
    editors: Sequence[Editor] = ()


@dataclass(frozen=True)
class Run:
    """The request of one run, as methods see it."""

    latent_shape: tuple[int, int, int, int]  # (pictures, channels, height, width) of the result
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
    view_batch_size: int = 16

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
class Stage:
    """One resolution, from one step of the trajectory to another.

    Attributes:
        name: Shown with the progress.
        latent_size: (height, width) in cells.
        steps: Consecutive steps of the whole trajectory.
        begin: (run, outcome of the stage before or None) -> opening.
        paths: Their weights add up to 1.
        guidance: The rule of this stage.
        finish: Applied to the sample after the last step.
    """

    name: str
    latent_size: Size
    steps: range
    begin: Callable[[Run, Outcome | None], Opening]
    paths: Sequence[Path]
    guidance: Guidance
    finish: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def keyed(self) -> bool:
        """Whether one key per picture has to be drawn from the random streams."""
        return any(path.keyed for path in self.paths)
