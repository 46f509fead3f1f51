"""Noise fields: the denoiser evaluated over the views of a path, in micro-batches, and fused over the whole sample.

Only the micro-batch is ever in memory at once; the accumulators are as large as the sample.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any

import torch

from seecoder.sampling.conditions import Conditions, Item
from seecoder.sampling.guidance import Branch
from seecoder.sampling.path import Path
from seecoder.sampling.step import Step
from seecoder.sampling.stepper import Stepper
from seecoder.sampling.views import Size, View, feather, full_view

Denoiser = Callable[..., torch.Tensor]
Fields = dict[Branch, torch.Tensor]
_STATE, _STATE_FIRST = attrgetter("network"), attrgetter("network", "context")  # of a branch


@dataclass(frozen=True)
class EditedSample:
    """The sample as the editors of a stage left it.

    Attributes:
        latents: The sample (B, C, H, W) that the scheduler will step.
        cut_from: The sample that views are cut from, where it is another one.
        offsets: What each (image, view) adds to its cut, (C, height, width).
    """

    latents: torch.Tensor
    cut_from: torch.Tensor | None = None
    offsets: Mapping[Item, torch.Tensor] = field(default_factory=dict)


class Editor(ABC):
    """Changes the sample before the noise is predicted."""

    @abstractmethod
    def is_large(self, step: Step) -> bool:
        """Whether the change is so large that a multistep scheduler must forget its history."""

    @abstractmethod
    def apply(self, latents: torch.Tensor, step: Step, evaluator: "Evaluator") -> EditedSample:
        """The changed sample of (B, C, H, W); `evaluator` may be asked what the network would predict."""


@dataclass(frozen=True)
class Evaluator:
    """Evaluates the denoiser for the paths of a stage.

    Attributes:
        denoiser: Called as `denoiser(latents, timestep, context, **conditions)`.
        stepper: Scales inputs, and knows whether outputs are noise, v or clean samples.
        conditions: Context and added conditions.
        view_batch_size: Native-sized (image, view) pairs that go through the denoiser at once, each with all its
            branches; larger views count by their area.
    """

    denoiser: Denoiser
    stepper: Stepper
    conditions: Conditions
    view_batch_size: int
    _needed: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def fields(self, edited: EditedSample, step: Step, paths: Sequence[Path], branches: Sequence[Branch]) -> Fields:
        """The fused fields of all paths, (B, C, H, W) each: what the network predicts about `edited.latents`.

        In a path every (context, network state) is evaluated once, however many branches ask for it.
        """
        cut_from = edited.latents if edited.cut_from is None else edited.cut_from
        total: Fields = {}
        for path in paths:
            weight = 1.0 if path.weight is None else path.weight(step)
            if isinstance(weight, float) and weight == 0.0:
                continue
            seen = cut_from if path.prefilter is None else path.prefilter(cut_from, step)
            offsets = edited.offsets if path.follows_offsets else {}
            own, groups = self._fields_of(path, branches)
            fused: Fields = {}
            for network, group in groups:
                fused |= self._fuse(seen, step, path, network, group, offsets)
            if path.prefilter is not None:
                fused = {b: self.stepper.carry_over(f, seen, edited.latents, step.index) for b, f in fused.items()}
            for branch in branches:
                part = fused[own[branch]] if path.weight is None else weight * fused[own[branch]]
                total[branch] = total[branch] + part if branch in total else part
        return total

    def _fields_of(
        self, path: Path, branches: Sequence[Branch]
    ) -> tuple[dict[Branch, Branch], list[tuple[str, list[Branch]]]]:
        """The field of a path that stands for each branch, and its fields by the network's state; worked out once."""
        key = (path, tuple(branches))
        if key not in self._needed:
            own = {branch: path.branch_for(branch) for branch in branches}
            by_state = groupby(sorted(set(own.values()), key=_STATE_FIRST), _STATE)
            self._needed[key] = own, [(network, list(group)) for network, group in by_state]
        return self._needed[key]

    def _fuse(
        self,
        seen: torch.Tensor,
        step: Step,
        path: Path,
        network: str,
        branches: Sequence[Branch],
        offsets: Mapping[Item, torch.Tensor],
    ) -> Fields:
        """Weighted mean of the views' predictions; cells that no view covers stay 0."""
        scaled = self.stepper.scale_input(seen, step.index)
        frames = [(image, full_view(step.latent_size)) for image in range(seen.shape[0])]
        fits = path.whole and len(frames) <= self._most_views(step, step.latent_size)
        batches = [frames] if fits else list(self.micro_batches(step, path, seen.shape[0]))
        if not offsets and batches == [frames]:
            outputs = self.predict(scaled, frames, step, path, network, branches)  # nothing to cut or fuse
            return {branch: output.to(seen.dtype) for branch, output in zip(branches, outputs, strict=True)}
        accumulators = [torch.zeros_like(seen) for _ in branches]
        weights = torch.zeros((seen.shape[0], 1, *seen.shape[2:]), dtype=seen.dtype, device=seen.device)
        for items in batches:
            inputs = [view.gather(scaled[image : image + 1]) for image, view in items]
            for place, item in enumerate(items):
                if item in offsets:
                    inputs[place] = inputs[place] + self.stepper.scale_input(offsets[item][None], step.index)
            outputs = self.predict(torch.cat(inputs), items, step, path, network, branches)
            for position, (image, view) in enumerate(items):
                weight = blend_weight(path, view, seen)
                view.scatter_add(weights[image], weight.expand(1, *view.size))
                for accumulator, output in zip(accumulators, outputs, strict=True):
                    view.scatter_add(accumulator[image], output[position].to(seen.dtype) * weight)
        weights = weights.masked_fill(weights == 0.0, 1.0)
        return {branch: total / weights for branch, total in zip(branches, accumulators, strict=True)}

    def micro_batches(self, step: Step, path: Path, images: int) -> Iterator[Sequence[Item]]:
        """All (image, view) pairs of a path, in groups of one view size that fit into the memory meant for them."""
        by_size: dict[Size, list[Item]] = {}
        for image in range(images):
            for view in path.views(step, image):
                by_size.setdefault(view.size, []).append((image, view))
        for items in by_size.values():
            yield from self.batches(items, step)

    def batches(self, items: Sequence[Item], step: Step) -> Iterator[Sequence[Item]]:
        """Pairs whose views have one size, in groups of as many as are evaluated at once."""
        limit = self._most_views(step, items[0][1].size if items else step.native_size)
        for start in range(0, len(items), limit):
            yield items[start : start + limit]

    def _most_views(self, step: Step, size: Size) -> int:
        """How many views of a size go through the network at once: larger ones than native count by their area."""
        native = step.native_size[0] * step.native_size[1]
        return max(1, self.view_batch_size * native // max(native, size[0] * size[1]))

    def predict(
        self,
        inputs: torch.Tensor,
        items: Sequence[Item],
        step: Step,
        path: Path,
        network: str,
        branches: Sequence[Branch],
    ) -> list[torch.Tensor]:
        """The network's outputs for one micro-batch of scaled inputs (N, C, h, w): one (N, C, h, w) per branch."""
        batch = torch.cat([inputs.to(self.conditions.dtype)] * len(branches))  # `repeat` takes ten times as long
        context = self.conditions.context(items, branches, path)
        keywords = self.conditions.keywords(items, branches, step, path)
        size = (inputs.shape[-2], inputs.shape[-1])
        with ExitStack() as stack:
            for patch in path.patches.get(network, ()):
                stack.enter_context(patch.active(step, size))
            keywords |= self.conditions.residuals(batch, context, items, branches, step, keywords)
            told = self.conditions.with_channels(batch, items, step)
            output = self.denoiser(told, step.timestep, context, **keywords)
        return list(output.chunk(len(branches)))


def blend_weight(path: Path, view: View, like: torch.Tensor) -> torch.Tensor:
    """Weight of a view's cells in the fused field, broadcastable to (C, height, width)."""
    if path.blend == "uniform":
        return torch.ones((1, 1, 1), dtype=like.dtype, device=like.device)
    return feather(view.size).to(like.device, like.dtype)[None]


def fuse_views(values: Mapping[Item, torch.Tensor], like: torch.Tensor, path: Path) -> torch.Tensor:
    """Weighted mean over views of per-view samples, (B, C, H, W); cells that no view covers are 0."""
    total, weights = torch.zeros_like(like), torch.zeros_like(like[:, :1])
    for (image, view), value in values.items():
        weight = blend_weight(path, view, like)
        view.scatter_add(total[image], value * weight)
        view.scatter_add(weights[image], weight.expand(1, *view.size))
    return total / weights.masked_fill(weights <= 0.0, 1.0)
