"""A path: one way of predicting noise for the whole sample, fused from views of it."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch

from seecoder.sampling.guidance import Branch
from seecoder.sampling.step import Step
from seecoder.sampling.views import Size, View


class Patch(ABC):
    """Changes layers of a network for the duration of a `with` block and gives them back bit-identical."""

    @abstractmethod
    def active(self, step: Step, size: Size) -> AbstractContextManager[None]:
        """The context in which the network is changed, for views of `size` cells at this step."""


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled networks as plain Python for the duration of the block: they do not look at hooks added later."""
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # nothing has been compiled without it
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


Planner = Callable[[Step, int], Sequence[View]]  # (step, image) -> the views that one picture is seen through
Weight = Callable[[Step], float | torch.Tensor]
Prefilter = Callable[[torch.Tensor, Step], torch.Tensor]
Patches = Mapping[str, Sequence[Patch]]  # by the network state that they make


@dataclass(frozen=True, eq=False)
class Path:
    """One way of predicting noise for the whole sample, fused from views.

    Attributes:
        views: Says which views one picture is seen through at a step; together they cover all cells where the path
            has weight.
        weight: Weight of this path in the fused field: a number or a map (…, H, W). The weights of a stage's paths
            add up to 1 everywhere. None means 1.
        prefilter: What is done to the (B, C, H, W) sample before the views are cut from it.
        patches: Network changes by the name of the network state; a name that is missing here means "main".
        blend: Weights of the views where they overlap: "uniform" or "feather" (linear towards the borders).
        context: Replaces the run's positive context here (one region, one picture): (1 or B, tokens, width).
        pooled: Replaces the run's pooled vector here (SDXL): (1 or B, width).
        unconditional: Every branch is given the negative context here: the path adds detail, and no subject.
        follows_offsets: Whether an editor's per-view changes (SyncDiffusion) apply to this path's views.
        keyed: Whether `views` makes random choices (its stage then draws one key per picture).
        whole: Whether `views` always gives the one view of all cells, so that there is nothing to plan.
    """

    views: Planner
    weight: Weight | None = None
    prefilter: Prefilter | None = None
    patches: Patches = field(default_factory=dict)
    blend: Literal["uniform", "feather"] = "uniform"
    context: torch.Tensor | None = None
    pooled: torch.Tensor | None = None
    unconditional: bool = False
    follows_offsets: bool = False
    keyed: bool = False
    whole: bool = False

    def branch_for(self, branch: Branch) -> Branch:
        """The branch that this path evaluates where the guidance rule wants `branch`."""
        context = "negative" if self.unconditional else branch.context
        return Branch(context, branch.network if branch.network in self.patches else "main")
