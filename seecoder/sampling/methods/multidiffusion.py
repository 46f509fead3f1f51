"""MultiDiffusion: one sample, denoised through overlapping windows of the size that the network knows.

Paper: Bar-Tal et al., "MultiDiffusion: Fusing Diffusion Paths for Controlled Image Generation", ICML 2023,
arXiv 2302.08113. Its objective (Eq. 3) is solved by the per-cell weighted mean of the windows' steps (Eq. 5). Here the
windows' noise predictions are averaged and the scheduler makes one step: the same for deterministic linear steps,
and right for the others too, where averaging stepped windows divides the variance of fresh noise by the overlap.

Departures: the last window is clamped so that every cell is covered (the published grid leaves up to stride - 1
columns that are never denoised); windows may be jittered, weighted and wrapped; default stride a quarter of the window
(published: an eighth, at four times the cost).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch.nn import functional

from seecoder.checks import FLAG, check, choice, instance, optional, some_of, whole
from seecoder.presets import ABOVE_NATIVE
from seecoder.sampling.methods.setting_rules import LENGTHS, TRAJECTORY_FRACTION
from seecoder.sampling.path import Patches, Path, Planner, Prefilter, Weight
from seecoder.sampling.stages import Run
from seecoder.sampling.step import Step
from seecoder.sampling.views import Size, View, jitter, windows

_COLOUR_SIDE = 64  # side of the constant-colour pictures that bootstrapping encodes, in pixels


@dataclass(frozen=True, eq=False)
class Region:
    """A part of the result with its own context (its own picture).

    Attributes:
        mask: (H, W) in [0, 1], 1 inside; any resolution, it is resized to the latents.
        context: (1 or B, tokens, width), in place of the run's context.
        pooled: (1 or B, width), in place of the pooled vector that `added_conditions` gives (SDXL); None keeps that
            one, and with it something of the run's own picture.
    """

    mask: torch.Tensor
    context: torch.Tensor
    pooled: torch.Tensor | None = None

    def __post_init__(self) -> None:
        _check_mask(self.mask)
        _check_vectors("context", self.context, "(1 or B, tokens, width)", 3)
        if self.pooled is not None:
            _check_vectors("pooled", self.pooled, "(1 or B, width)", 2)


@dataclass(frozen=True)
class MultiDiffusion:
    """Settings of MultiDiffusion; all lengths in latent cells.

    Attributes:
        window: Side (or height and width) of a window; None is the native size.
        stride: Step between windows; None is a quarter of the window. At most the window.
        jitter: Largest random move of interior windows at every step; at most (window - stride) / 2.
        blend: "uniform" (published) or "feather" (weights that fall towards the borders of the windows).
        closed_loop: Wrap windows around the left and right border: a 360° panorama. Decode with `wrap=True`.
        regions: Foreground regions; what no mask covers follows the run's own context.
        bootstrap: Fraction of the trajectory in which a region is denoised before random backgrounds of constant
            colour, so that its object stays inside its mask (published: 20 of 50 steps). Needs `encoder`.
    """

    window: int | Size | None = None
    stride: int | Size | None = None
    jitter: int = 0
    blend: Literal["uniform", "feather"] = "uniform"
    closed_loop: bool = False
    regions: Sequence[Region] = ()
    bootstrap: float = 0.4

    def __post_init__(self) -> None:
        check(
            self,
            window=optional(LENGTHS),
            stride=optional(LENGTHS),
            jitter=whole(0),
            blend=choice("uniform", "feather"),
            closed_loop=FLAG,
            regions=some_of(instance(Region), "a list of Regions"),
            bootstrap=TRAJECTORY_FRACTION,
        )

    def window_size(self, native_size: Size, size: Size) -> Size:
        """(height, width) of the windows over latents of `size`.

        A native window takes in up to 5 % more of an axis, where a second one would show almost the same cells.
        """
        height, width = _pair(self.window, native_size)
        slack = ABOVE_NATIVE if self.window is None else 1.0
        return (
            size[0] if size[0] <= slack * height else height,
            size[1] if size[1] <= slack * width else width,
        )

    def stride_size(self, window: Size, size: Size) -> Size:
        """(rows, columns) between windows.

        On a closed loop the default is the next smaller divisor of the width, unless that is less than half: it would
        be 1, at sixteen times the cost, where the width is a prime.
        """
        default = (max(1, window[0] // 4), max(1, window[1] // 4))
        rows, columns = _pair(self.stride, default)
        if self.closed_loop and self.stride is None:
            divisors = (step for step in range(columns, columns // 2, -1) if size[1] % step == 0)
            columns = next(divisors, columns)
        return rows, columns

    def views(self, native_size: Size, size: Size) -> tuple[View, ...]:
        """The windows over latents of `size`, before jitter.

        Raises:
            ValueError: If the stride, the jitter or the loop do not fit the window.
        """
        window = self.window_size(native_size, size)
        strides = self.stride_size(window, size)
        if self.closed_loop and self.stride is None and size[1] % strides[1]:
            count = -(-size[1] // strides[1])  # as even as whole cells allow
            lefts = {place * size[1] // count for place in range(count)}
            every = windows(size, window, (strides[0], 1), True)
            found = tuple(view for view in every if view.left in lefts)
        else:
            found = windows(size, window, strides, self.closed_loop)
        for length, side, stride in zip(size, window, strides, strict=True):
            if length > side and self.jitter > (side - stride) // 2:
                raise ValueError(
                    f"`jitter`={self.jitter} would leave cells that no window sees; with windows of {side} and a "
                    f"stride of {stride} it may be 0 to {(side - stride) // 2}."
                )
        return found

    def paths(self, run: Run, size: Size, patches: Patches) -> list[Path]:
        """One path for the background or the whole sample, and one for each region."""
        views = self.views(run.native_size, size)

        def plan(step: Step, image: int) -> Sequence[View]:
            return jitter(views, size, (self.jitter, self.jitter), step.key(image)) if self.jitter else views

        path = Path(plan, patches=patches, blend=self.blend, follows_offsets=True, keyed=self.jitter > 0)
        found = self.by_region(run, path, size)
        if not self.regions or self.bootstrap <= 0.0:
            return found
        for place, weight in enumerate(self._maps(run, size)[1:], start=1):
            found[place] = replace(found[place], prefilter=bootstrapped(run, weight, size, self.bootstrap))
        return found

    def by_region(self, run: Run, path: Path, size: Size) -> list[Path]:
        """A path split into one for the background and one for each region, each with its context and its map."""
        if not self.regions:
            return [path]
        parts = [
            replace(
                path, views=_meeting(path.views, part), whole=False, weight=weight_product(_constant(part), path.weight)
            )
            for part in self._maps(run, size)
        ]
        for place, region in enumerate(self.regions, start=1):
            pooled = None if region.pooled is None else region.pooled.to(run.device)
            parts[place] = replace(parts[place], context=region.context.to(run.device), pooled=pooled)
        return parts

    def _maps(self, run: Run, size: Size) -> list[torch.Tensor]:
        return region_weights([region.mask for region in self.regions], size, run.device, run.dtype)


def _meeting(views: Planner, region: torch.Tensor) -> Planner:
    """Only those of a planner's views that meet a region's map (1, H, W)."""
    footprint = (region > 0).cpu()  # planning must not wait for an accelerator
    return lambda step, image: [view for view in views(step, image) if bool(view.gather(footprint).any())]


def weight_product(first: Weight, second: Weight | None) -> Weight:
    """The product of two weights of a path, where None is 1."""
    return first if second is None else lambda step: first(step) * second(step)


def region_weights(
    masks: Sequence[torch.Tensor], size: Size, device: torch.device, dtype: torch.dtype
) -> list[torch.Tensor]:
    """Maps (1, H, W) of the background and of every region that add up to 1 in every cell (Sec. 5.2).

    The background is what the regions leave, max(0, 1 - sum); regions that overlap divide a cell by their values.

    Args:
        masks: (H, W) with values in [0, 1], of any resolution.
        size: (height, width) of the maps in cells.
        device: Of the maps.
        dtype: Of the maps.
    """
    resized = [functional.interpolate(mask[None, None].to(device, dtype), size=size, mode="area")[0] for mask in masks]
    foreground = torch.stack(resized).sum(dim=0)
    maps = [(1.0 - foreground).clamp(min=0.0), *resized]
    total = torch.stack(maps).sum(dim=0)
    return [weight / total for weight in maps]


def _check_vectors(name: str, values: torch.Tensor, shape: str, axes: int) -> None:
    if values.ndim != axes or not bool(values.isfinite().all()):
        found = "" if values.ndim != axes else " with NaN or infinity"
        raise ValueError(f"A region's `{name}` must be {shape} and finite, not {tuple(values.shape)}{found}.")


def _check_mask(mask: torch.Tensor) -> None:
    # Of NaN neither is true, and one of them would make the whole picture NaN.
    if mask.ndim != 2 or mask.numel() == 0 or not bool(((mask >= 0) & (mask <= 1)).all()):
        values = f" with values {float(mask.min()):g} to {float(mask.max()):g}" if mask.numel() else ""
        raise ValueError(f"A region's `mask` must be (H, W) with values in [0, 1], not {tuple(mask.shape)}{values}.")


def bootstrapped(run: Run, weight: torch.Tensor, size: Size, fraction: float) -> Prefilter:
    """The prefilter that puts a region before a constant-colour background in the first steps (Sec. 5.2).

    The noise of the background is the same in all steps; the colour is another one in each.

    Args:
        run: Its encoder makes the backgrounds.
        weight: The region's map (1, H, W).
        size: (height, width) of the sample in cells.
        fraction: Fraction of the trajectory that counts as its first steps.

    Raises:
        ValueError: If the run has no encoder.
    """
    if run.encoder is None:
        raise ValueError("`bootstrap` above 0 needs an `encoder` for its backgrounds. Give one, or set bootstrap=0.")
    steps = round(fraction * len(run.stepper))
    colours = run.randomness.uniform((run.latent_shape[0], steps, 3), run.device, run.dtype) * 2.0 - 1.0
    noise = run.noise(size)
    encoder, stepper = run.encoder, run.stepper

    def prefilter(latents: torch.Tensor, step: Step) -> torch.Tensor:
        if step.index >= steps:
            return latents
        pixels = colours[:, step.index, :, None, None].expand(-1, -1, _COLOUR_SIDE, _COLOUR_SIDE)
        background = encoder(pixels).to(colours.dtype).mean(dim=(2, 3), keepdim=True).expand_as(noise)
        return weight * latents + (1.0 - weight) * stepper.add_noise(background, noise, step.index)

    return prefilter


def _constant(value: torch.Tensor) -> Weight:
    return lambda step: value


def _pair(value: int | Size | None, default: Size) -> Size:
    if value is None:
        return default
    return (value, value) if isinstance(value, int) else value
