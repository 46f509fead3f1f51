"""DemoFusion: progressive upscaling, with skip residual and dilated sampling to keep it coherent.

Paper: Du et al., "DemoFusion: Democratising High-Resolution Image Generation With No $$$", CVPR 2024, arXiv 2311.16973.

A phase enlarges the result of the one before, noises it again, and denoises it at its own size. In each of its steps
the sample is first drawn towards the noised enlargement (skip residual, Eq. 4-5), then the noise is predicted twice:
through overlapping jittered windows (local path) and through interleaved lattices of the blurred sample, each of which
holds the whole picture at the native size (dilated sampling, Eq. 6-8).

Where the default differs from the released code, and why:
* noise predictions are fused and the scheduler steps once. The released code lets every batch of views step the
  scheduler, so that all but the first see the sigma of another step;
* the steps of later phases whose result the skip residual discards are not computed (`skip_dead_steps`);
* windows are clamped at the borders, the blur reflects there, and lattices need no padding: no cell that the network
  sees is an invented zero;
* the base phase has the native area at any aspect ratio;
* the mean and standard deviation that later phases are brought back to are those of each picture, not of the batch.
`blur_padding="zeros"` and `blur_kernel` reach the released and the printed conventions of the blur.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from seecoder.checks import FLAG, Rule, check, choice, either, number, optional, whole
from seecoder.presets import scale_over
from seecoder.sampling.methods.demofusion.dilated_sampling import (
    blur_std,
    dilated_path,
    dilated_weight,
    statistics,
    with_statistics,
)
from seecoder.sampling.methods.demofusion.skip_residual import SkipResidual, cosine_decay, first_live_step, skip_weight
from seecoder.sampling.methods.enlargement import SPACE, Space, check_enlargement, enlarged
from seecoder.sampling.methods.multidiffusion import MultiDiffusion, weight_product
from seecoder.sampling.methods.setting_rules import LENGTHS
from seecoder.sampling.path import Path
from seecoder.sampling.recipe import Recipe, StagesMethod
from seecoder.sampling.sizes import base_size, panorama_base, scaled_size
from seecoder.sampling.stages import Outcome, Run, Stage, StageStart
from seecoder.sampling.step import Step
from seecoder.sampling.stepper import Stepper
from seecoder.sampling.views import Size

_INFLUENCE = Rule(lambda value: number(0.0, 1.0).accepts(value) and value < 1, "an influence from 0 to below 1")
_DEAD = 1e-3  # influence below which a step is not computed where the user does not say


@dataclass(frozen=True)
class DemoFusion(StagesMethod):
    """Settings of DemoFusion, named as published.

    The number of phases follows from the area: a result of the native area is one phase, whatever its aspect ratio.

    Attributes:
        cosine_scale_1: Exponent of the skip residual's weight.
        cosine_scale_2: Exponent of dilated sampling's weight.
        cosine_scale_3: Exponent of the blur's width.
        blur_sigma: Width of the blur in cells (published as `sigma`: 1.0 in the signature, 0.8 in every example).
        stride: Step between the local windows in cells; None is half the window (published: 64 of 128).
        jitter: Move the local windows at random, by up to a quarter of window minus stride.
        skip_dead_steps: Influence on the final sample below which the first steps of later phases are not computed
            (0.001: 11 of 50 steps). True is 0.001, False computes them all.
        use_skip_residual: For ablations: without it a phase only starts from the noised enlargement.
        use_dilated_sampling: For ablations: without it there are only the local windows.
        windows_see_context: False gives the local windows the negative context, at half the cost of the local path.
            Each window sees a part of the picture, and a context that describes the whole makes it draw the whole
            again: the repetition that AccDiffusion (arXiv 2407.10738) traces back to it.
        use_windows: False leaves out the local path; the lattices, or the network method of the run, do it all.
        blur_kernel: "released" has 2s - 1 taps at scale s, "paper" 4s - 3; they differ at s = 2 only.
        blur_padding: "reflect", or "zeros" as released.
        resize_in: Where a phase enlarges the result of the one before: "latents" (published), or "pixels", which
            needs the run's decoder and encoder.
        num_phases: None is one phase for every whole multiple of the native side, rounded up.
    """

    starts_whole: ClassVar[bool] = True
    enlarges_images: ClassVar[bool] = True

    cosine_scale_1: float = 3.0
    cosine_scale_2: float = 1.0
    cosine_scale_3: float = 1.0
    blur_sigma: float = 0.8
    stride: int | Size | None = None
    jitter: bool = True
    skip_dead_steps: bool | float = True
    use_skip_residual: bool = True
    use_dilated_sampling: bool = True
    windows_see_context: bool = True
    use_windows: bool = True
    blur_kernel: Literal["released", "paper"] = "released"
    blur_padding: Literal["reflect", "zeros"] = "reflect"
    resize_in: Space = "latents"
    num_phases: int | None = None

    def __post_init__(self) -> None:
        numbers = ("cosine_scale_1", "cosine_scale_2", "cosine_scale_3", "blur_sigma")
        flags = ("jitter", "use_skip_residual", "use_dilated_sampling", "windows_see_context", "use_windows")
        check(
            self,
            **dict.fromkeys(numbers, number(0.0)),
            **dict.fromkeys(flags, FLAG),
            stride=optional(LENGTHS),
            skip_dead_steps=either(FLAG, _INFLUENCE),
            blur_kernel=choice("released", "paper"),
            blur_padding=choice("reflect", "zeros"),
            resize_in=SPACE,
            num_phases=optional(whole(1)),
        )

    def sizes(self, size: Size, native_size: Size, *, is_panorama: bool = False) -> list[Size]:
        """(height, width) of every phase; the scale grows evenly.

        The first has the native area, or for a panorama, which is seen in windows from the start, the native height.
        """
        base = panorama_base(size, native_size) if is_panorama else base_size(size, native_size)
        scale = scale_over(size, base if is_panorama else native_size)
        count = math.ceil(scale - 1e-6) if self.num_phases is None else self.num_phases
        if scale <= 1.0 or count <= 1:
            return [size]
        scales = [1.0 + (scale - 1.0) * phase / (count - 1) for phase in range(1, count - 1)]
        between = [scaled_size(size, value / scale, native_size) for value in scales]
        return list(dict.fromkeys([base, *between, size]))

    def plan(self, run: Run, recipe: Recipe) -> list[Stage]:
        """One stage for each phase; a given picture takes the place of the first ones."""
        sizes = self.sizes(run.size, run.native_size, is_panorama=recipe.editor is not None)
        first = 0 if run.image_latents is None else _phase_of_image(sizes, run.image_latents)
        names = [f"phase {place + 1} of {len(sizes)}" for place in range(len(sizes))]
        if len(sizes) > 1 or run.image_latents is not None:
            check_enlargement("DemoFusion", run, self.resize_in)
        stages = []
        anchors = _Anchors()
        if run.image_latents is None:
            stages.append(recipe.base_stage(run, sizes[0], names[0], anchors.keep, in_windows=False))
            first = 1
        for place in range(first, len(sizes)):
            stages.append(self._phase(run, recipe, sizes[place], sizes[0], names[place], anchors))
        return stages

    def _phase(self, run: Run, recipe: Recipe, size: Size, base: Size, name: str, anchors: "_Anchors") -> Stage:
        kappas = [cosine_decay(time, run.stepper.num_train_timesteps) for time in run.stepper.times]
        weights = [skip_weight(kappa, self.cosine_scale_1) for kappa in kappas]
        start = self._first_step(run.stepper, weights)

        def begin(run: Run, before: Outcome | None) -> StageStart:
            reference = enlarged(run, _source(run, before), size, self.resize_in)
            reference = reference.expand(run.latent_shape[0], -1, -1, -1)
            anchors.keep(reference)
            noise = run.noise(size)
            latents = run.stepper.add_noise(reference, noise, start)
            editor = SkipResidual(reference, noise, lambda step: weights[step.index], run.stepper)
            return StageStart(latents, [editor] if self.use_skip_residual else [], noise)

        paths = self._paths(run, recipe, size, base)
        guidance = recipe.guidance(run, size)
        return Stage(name, size, range(start, len(run.stepper)), begin, paths, guidance, anchors.restore)

    def _first_step(self, stepper: Stepper, weights: Sequence[float]) -> int:
        threshold = _DEAD if self.skip_dead_steps is True else float(self.skip_dead_steps)
        if not self.use_skip_residual:
            return 0
        whole = [index for index in range(len(stepper)) if stepper.is_boundary(index)]  # half steps are not edited
        return whole[first_live_step([weights[index] for index in whole], threshold)]

    def _paths(self, run: Run, recipe: Recipe, size: Size, base: Size) -> list[Path]:
        """Local and global path with their weights; at the base size there is only the whole frame."""
        if scale_over(size, base) <= 1.0:
            return [recipe.frame_path(run, size)]
        frame = self._global_path(run, recipe, size, base)
        whole = [frame] if recipe.windows is None else recipe.windows.by_region(run, frame, size)
        if not self.use_windows:
            return whole
        local = self._local_paths(run, recipe, size)
        if not self.use_dilated_sampling:
            return local

        def dilated(step: Step) -> float:
            return dilated_weight(cosine_decay(step.time, step.num_train_timesteps), self.cosine_scale_2)

        return [
            *(replace(path, weight=weight_product(lambda step: 1.0 - dilated(step), path.weight)) for path in local),
            *(replace(path, weight=weight_product(dilated, path.weight)) for path in whole),
        ]

    def _local_paths(self, run: Run, recipe: Recipe, size: Size) -> list[Path]:
        # The regions' objects stand from the first phase on; other backgrounds would only mislead the network.
        windows = self._windows(run, size) if recipe.windows is None else replace(recipe.windows, bootstrap=0.0)
        paths = windows.paths(run, size, {})
        return paths if self.windows_see_context else [replace(path, unconditional=True) for path in paths]

    def _windows(self, run: Run, size: Size) -> MultiDiffusion:
        window = MultiDiffusion().window_size(run.native_size, size)
        stride = self.stride if self.stride is not None else (max(1, window[0] // 2), max(1, window[1] // 2))
        rows, columns = (stride, stride) if isinstance(stride, int) else stride
        move = max(0, min(window[0] - rows, window[1] - columns) // 4) if self.jitter else 0
        return MultiDiffusion(stride=(rows, columns), jitter=move)

    def _global_path(self, run: Run, recipe: Recipe, size: Size, base: Size) -> Path:
        """Lattices of the blurred sample; the whole frame without them, or where a method changes the network."""
        if recipe.network is not None or not self.use_dilated_sampling:
            return recipe.frame_path(run, size)

        def std(step: Step) -> float:
            kappa = cosine_decay(step.time, step.num_train_timesteps)
            return blur_std(kappa, self.cosine_scale_3, self.blur_sigma)

        return dilated_path(size, base, 2 if self.blur_kernel == "released" else 4, std, self.blur_padding)


def _source(run: Run, before: Outcome | None) -> torch.Tensor:
    """What a phase enlarges: the result of the phase before, or the given picture."""
    found = run.image_latents if before is None else before.latents
    assert found is not None  # the first phase begins with noise
    return found


class _Anchors:
    """Mean and standard deviation of the first result, which all later phases are brought back to."""

    def __init__(self) -> None:
        self._statistics: tuple[torch.Tensor, torch.Tensor] | None = None

    def keep(self, latents: torch.Tensor) -> torch.Tensor:
        if self._statistics is None:
            self._statistics = statistics(latents)
        return latents

    def restore(self, latents: torch.Tensor) -> torch.Tensor:
        return latents if self._statistics is None else with_statistics(latents, *self._statistics)


def _phase_of_image(sizes: Sequence[Size], image: torch.Tensor) -> int:
    """The last phase that is not larger than the given picture: what a large picture already shows is kept."""
    cells = image.shape[-2] * image.shape[-1]
    return max([0, *(place for place, size in enumerate(sizes) if size[0] * size[1] <= cells)])
