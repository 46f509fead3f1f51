"""SyncDiffusion: windows of a panorama that agree with each other before they are joined.

Paper: Lee et al., "SyncDiffusion: Coherent Montage via Synchronized Joint Diffusions", NeurIPS 2023, arXiv 2306.05178.
Before a step every window is moved against the gradient of a perceptual loss between the picture that it is about to
become and the picture that one anchor window is about to become (Algorithm 1); then the windows are denoised and fused
as MultiDiffusion does.

Departures: windows go through the network in micro-batches, with gradient checkpointing; the anchor's gradient, which
nobody uses, is not computed; predicted pictures are not clamped, which would cut the gradient where they overshoot; a
closed loop has all its width / stride windows and is decoded around the border (`wrap=True`); the loss is injectable.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from torch.utils.checkpoint import checkpoint

from seecoder.checks import FLAG, FUNCTION, check, choice, either, number, optional, whole
from seecoder.sampling.conditions import Item
from seecoder.sampling.fields import EditedSample, Editor, Evaluator, fuse_views
from seecoder.sampling.guidance import ClassifierFree
from seecoder.sampling.methods.multidiffusion import MultiDiffusion
from seecoder.sampling.methods.perceptual import LPIPS_WEIGHTS, PerceptualLoss, find_loss
from seecoder.sampling.methods.setting_rules import LENGTHS, TRAJECTORY_FRACTION
from seecoder.sampling.path import Path
from seecoder.sampling.stages import Codec, Run
from seecoder.sampling.step import Step
from seecoder.sampling.views import Size, View

logger = logging.getLogger(__name__)


def sync_weight_at(weight: float, decay: float, index: int) -> float:
    """w_i = w * gamma^i: the step size of the gradient descent at step i (Sec. 4)."""
    return weight * decay**index


@dataclass(frozen=True)
class SyncDiffusion:
    """Settings of SyncDiffusion; lengths in latent cells.

    In a run with MultiDiffusion the windows are MultiDiffusion's, with its regions, jitter and feather. Where there are
    regions, only windows that show some of the background are synchronised.

    Attributes:
        window: Side (or height and width) of a window; None is the native size.
        stride: Step between windows; None is a quarter of the window (published: 16 of 64).
        closed_loop: A 360° panorama; decode with `wrap=True`.
        sync_weight: Step size w of the gradient descent (published: 20, for LPIPS).
        sync_decay: Its decay gamma per step.
        sync_every: Synchronise every so many steps.
        sync_threshold: Fraction of the trajectory with synchronisation (published: 10 of 50 steps in the script, all in
            the function; later ones change little and cost the same).
        anchor: Window that the others follow: "middle" (as released), "first" (as in the paper), or its index.
        loss: Path of LPIPS weights (published; `scripts/convert_lpips.py` makes them), or a function of (N, 3, h, w)
            pairs in [-1, 1] -> (N,); None is LPIPS where its package and weights are, else a pyramid of local colour
            and contrast.
        clamp: Clamp predicted pictures to [-1, 1], as released.
    """

    window: int | Size | None = None
    stride: int | Size | None = None
    closed_loop: bool = False
    sync_weight: float = 20.0
    sync_decay: float = 0.95
    sync_every: int = 1
    sync_threshold: float = 0.2
    anchor: Literal["middle", "first"] | int = "middle"
    loss: PerceptualLoss | str | os.PathLike[str] | None = None
    clamp: bool = False

    def __post_init__(self) -> None:
        check(
            self,
            window=optional(LENGTHS),
            stride=optional(LENGTHS),
            closed_loop=FLAG,
            sync_weight=number(0.0),
            sync_decay=number(0.0, 1.0),
            sync_every=whole(1),
            sync_threshold=TRAJECTORY_FRACTION,
            anchor=either(choice("middle", "first"), whole()),
            loss=optional(either(FUNCTION, LPIPS_WEIGHTS)),
            clamp=FLAG,
        )

    @property
    def windows(self) -> MultiDiffusion:
        """The windows, where no MultiDiffusion in the same run says otherwise."""
        return MultiDiffusion(window=self.window, stride=self.stride, closed_loop=self.closed_loop)

    def editor(self, run: Run, path: Path) -> "Synchronise":
        """The editor of a stage whose windows `path` plans.

        Raises:
            ValueError: If the run has no decoder.
        """
        if run.decoder is None:
            raise ValueError("SyncDiffusion() compares decoded windows. Give sample() a `decoder`.")
        self._warn_if_idle(range(run.first_step, len(run.stepper)))
        loss = find_loss(self.loss, run.device)
        return Synchronise(self, path, run.decoder, loss, ClassifierFree(run.guidance_scale))

    def synchronises(self, index: int, count: int) -> bool:
        """Whether step `index` of `count` is one of those that synchronise."""
        is_due = (index + 1) % self.sync_every == 0
        return is_due and index < round(self.sync_threshold * count) and self.sync_weight != 0.0

    def _warn_if_idle(self, steps: range) -> None:
        is_off = self.sync_threshold == 0.0 or self.sync_weight == 0.0
        if not is_off and not any(self.synchronises(index, steps.stop) for index in steps):
            logger.warning(
                "SyncDiffusion() synchronises none of the %d steps (`sync_threshold`=%g, `sync_every`=%d): the windows "
                "are only blended. Use more steps, or a larger `sync_threshold`.",
                len(steps),
                self.sync_threshold,
                self.sync_every,
            )


@dataclass(frozen=True)
class Synchronise(Editor):
    """The editor: one step of gradient descent on every window but the anchor.

    Attributes:
        settings: The method's settings.
        path: The windows of the stage.
        decoder: Latents to pixels, differentiable.
        loss: How unlike two pictures look.
        guidance: The rule by which windows' predictions are made.
    """

    settings: SyncDiffusion
    path: Path
    decoder: Codec
    loss: PerceptualLoss
    guidance: ClassifierFree

    def is_large(self, step: Step) -> bool:
        """Whether this step synchronises."""
        return self.settings.synchronises(step.index, step.count)

    def apply(self, latents: torch.Tensor, step: Step, evaluator: Evaluator) -> EditedSample:
        """The sample with every window moved; the network sees each window with its own move.

        Raises:
            ValueError: If there is no window to follow, or no such one.
        """
        if not self.is_large(step):
            return EditedSample(latents)
        items = list(chain.from_iterable(evaluator.micro_batches(step, self.path, latents.shape[0])))
        if not items:
            raise ValueError(
                "SyncDiffusion() has the windows of the background follow one of them, but the masks of the regions "
                "cover the whole picture, and leave no window of the background. Leave SyncDiffusion out, or make the "
                "masks smaller."
            )
        anchors = {item for item in items if item[1] == self._anchor(step, item[0])}
        references = self._references(latents, sorted(anchors), step, evaluator)
        weight = sync_weight_at(self.settings.sync_weight, self.settings.sync_decay, step.index)
        offsets = {item: torch.zeros_like(item[1].gather(latents[item[0]])) for item in anchors}
        others = [item for item in items if item not in anchors]
        for batch in evaluator.batches(others, step):
            gradients = self.gradients(latents, batch, references, step, evaluator)
            offsets |= {item: -weight * gradient for item, gradient in zip(batch, gradients, strict=True)}
        moved = latents + fuse_views(offsets, latents, self.path)
        return EditedSample(moved, cut_from=latents, offsets=offsets)

    def gradients(
        self, latents: torch.Tensor, items: Sequence[Item], references: torch.Tensor, step: Step, evaluator: Evaluator
    ) -> torch.Tensor:
        """Gradient of every window's loss with respect to its own cells, (N, C, height, width)."""
        with torch.enable_grad():
            cuts = _cuts(latents, items).detach().requires_grad_()
            images = self.predicted_images(cuts, items, step, evaluator)
            loss = self.loss(images, references[[image for image, _ in items]])
            return torch.autograd.grad(loss.sum(), cuts)[0]

    def predicted_images(
        self, cuts: torch.Tensor, items: Sequence[Item], step: Step, evaluator: Evaluator
    ) -> torch.Tensor:
        """What windows (N, C, h, w) are about to become: their predicted x0, decoded to pixels in [-1, 1]."""
        branches = self.guidance.branches(step)

        def predicted_x0(values: torch.Tensor) -> torch.Tensor:
            scaled = evaluator.stepper.scale_input(values, step.index)
            outputs = evaluator.predict(scaled, items, step, self.path, "main", branches)
            guided = self.guidance.combine(dict(zip(branches, outputs, strict=True)), step)
            return evaluator.stepper.predict_x0(guided.to(values.dtype), values, step.index)

        images = self.decoder(checkpoint(predicted_x0, cuts, use_reentrant=False))
        return images.clamp(-1.0, 1.0) if self.settings.clamp else images

    def _references(
        self, latents: torch.Tensor, anchors: Sequence[Item], step: Step, evaluator: Evaluator
    ) -> torch.Tensor:
        """The anchor windows' predicted pictures, one row per picture of the batch."""
        batches = evaluator.batches(anchors, step)
        return torch.cat([self.predicted_images(_cuts(latents, batch), batch, step, evaluator) for batch in batches])

    def _anchor(self, step: Step, image: int) -> View:
        views = list(self.path.views(step, image))
        choice = self.settings.anchor
        if isinstance(choice, int):
            if not -len(views) <= choice < len(views):
                raise ValueError(f"`anchor`={choice} is none of the {len(views)} windows.")
            return views[choice]
        return views[0] if choice == "first" else middle_view(views, step.latent_size)


def _cuts(latents: torch.Tensor, items: Sequence[Item]) -> torch.Tensor:
    return torch.cat([view.gather(latents[image : image + 1]) for image, view in items])


def middle_view(views: Sequence[View], size: Size) -> View:
    """The view whose centre is nearest to the picture's; of two equally near ones the later."""

    def distance(view: View) -> float:
        return (view.top + view.height / 2 - size[0] / 2) ** 2 + (view.left + view.width / 2 - size[1] / 2) ** 2

    return min(reversed(views), key=distance)
