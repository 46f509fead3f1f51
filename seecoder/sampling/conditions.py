"""What the denoiser is told besides the sample: context tokens, added conditions, ControlNet residuals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from accelerate.utils import concatenate, recursively_apply
from torch.nn import functional

from seecoder.sampling.guidance import Branch
from seecoder.sampling.path import Path
from seecoder.sampling.sizes import resized
from seecoder.sampling.step import Step
from seecoder.sampling.views import Size, View

AddedConditions = Callable[[View, Literal["positive", "negative"], Size], Mapping[str, Any]]
ExtraChannels = Callable[[Size], torch.Tensor]
Item = tuple[int, View]
_KEPT_NUMBERS = 2**26  # of the pixels whose parts are kept: with a T2I-Adapter's features of them about 1 GiB

_POOLED_IS_UNREAD = (
    "A region's `pooled` has no effect: this run's network reads no pooled vector (SDXL's do). Leave it out."
)


@dataclass(frozen=True)
class Control:
    """Spatial control by a ControlNet or a T2I-Adapter.

    Attributes:
        image: (1 or B, channels, height, width) picture for the whole result, any size: it is resized to each stage.
        residuals: Called as `residuals(latents, timestep, context, image, **added)` with what the denoiser will get
            and the part of the picture that belongs to it, (N, channels, 8h, 8w) for latents (N, C, h, w). Returns
            keyword arguments for the denoiser (`down_block_additional_residuals`, `mid_block_additional_residual`).
            `added` are the added conditions (`added_cond_kwargs` of SDXL).
        pixels_per_cell: Pixels along one side of a latent cell.
        prepare: What `residuals` is given in place of the pixels (N, channels, H, W) of such a part. It does not depend
            on the latents, and is made once for each part as long as there is room.
        span: Fractions of the steps that the run makes, in [0, 1], between which control acts. Step i of n lies inside
            where i / n >= start and (i + 1) / n <= end, as in diffusers' pipelines.
        positive_only: Whether the unconditional branch is left alone.
    """

    image: torch.Tensor
    residuals: Callable[..., Mapping[str, Any]]
    pixels_per_cell: int = 8
    span: tuple[float, float] = (0.0, 1.0)
    prepare: Callable[[torch.Tensor], Any] | None = None
    positive_only: bool = False
    _kept: dict[Any, torch.Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    _cut: dict[Any, tuple[int, Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def acts_at(self, step: Step) -> bool:
        """Whether a step lies in the span."""
        start, end = self.span
        place, count = step.index - step.first, step.count - step.first
        return place / count >= start and (place + 1) / count <= end

    def cuts(self, items: Sequence[Item], latent_size: Size, like: torch.Tensor) -> Any:
        """The prepared parts under the views of a micro-batch, once for every branch; kept for the following steps."""
        key = (latent_size, tuple(items), like.shape[0])
        if key in self._cut:
            return self._cut[key][1]
        if any(kept[0] != latent_size for kept in self._cut):
            self._cut.clear()
        parts = torch.cat([self.cut(image, view, latent_size) for image, view in items])
        parts = parts.to(like.device, like.dtype).repeat(like.shape[0] // len(items), 1, 1, 1)
        prepared = parts if self.prepare is None else self.prepare(parts)
        if not self._cut or parts.numel() + sum(count for count, _ in self._cut.values()) <= _KEPT_NUMBERS:
            self._cut[key] = (parts.numel(), prepared)
        return prepared

    def cut(self, image: int, view: View, latent_size: Size) -> torch.Tensor:
        """The part of the picture under a view, (1, channels, height, width) in pixels of the view.

        For a lattice every pixel is the mean of the s x s block that lies around it at the full size, so that cell
        (i, j) of the lattice looks at the place where cell (top + s*i, left + s*j) of the picture is.
        """
        scale = self.pixels_per_cell
        row = image if self.image.shape[0] > 1 else 0
        size = (latent_size[0] * scale, latent_size[1] * scale)
        pixels = self._resized(size)[row : row + 1]
        rows = _pixels(view.top, view.height, view.row_stride, scale).clamp(0, size[0] - 1)
        columns = _pixels(view.left, view.width, view.column_stride, scale)
        columns = columns % size[1] if view.wrap else columns.clamp(0, size[1] - 1)
        part = pixels[:, :, rows.to(pixels.device)][..., columns.to(pixels.device)]
        stride = (view.row_stride, view.column_stride)
        return part if stride == (1, 1) else functional.avg_pool2d(part, stride)

    def _resized(self, size: Size) -> torch.Tensor:
        """The pictures at a stage's size, kept until another stage asks: every window of every step cuts from them."""
        kept = self._kept.get(size)
        if kept is None:
            kept = resized(self.image, size, mode="bicubic", antialias=True, align_corners=False)
            self._kept.clear()
            self._kept[size] = kept
        return kept


def _pixels(start: int, cells: int, stride: int, scale: int) -> torch.Tensor:
    """Pixel numbers along one axis under `cells` cells from `start` on, `stride` pixels for each pixel of the view."""
    first = start * scale - (stride - 1) * scale // 2
    return first + torch.arange(cells * scale * stride)


@dataclass
class Conditions:
    """Context and added conditions of a run, cut to any micro-batch of (image, view) pairs.

    The contexts and the guidance may change between two steps (`change`); nothing else does.

    Attributes:
        positive: (1 or B, tokens, width).
        negative: The same shape, or None where no guidance rule asks for it.
        added: Called as `added(view, "positive" or "negative", latent_size)`; returns keyword arguments of the
            denoiser: tensors with 1 or B rows, or mappings or lists of such tensors (`added_cond_kwargs` of SDXL).
        control: ControlNets and the like; what they return under one name is added up.
        extra_channels: Called with the size of a stage; gives (1 or B, channels, *size) that go below the sample.
        guidance: Factor on the guidance scale; 0 is no guidance.
    """

    positive: torch.Tensor
    negative: torch.Tensor | None
    added: AddedConditions | None
    control: Sequence[Control]
    extra_channels: ExtraChannels | None = None
    guidance: float = 1.0
    _kept: dict[Any, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    def change(self, positive: torch.Tensor, negative: torch.Tensor | None, guidance: float) -> None:
        """Go on with other contexts of the same shapes, and another factor on the guidance scale."""
        self.positive, self.negative, self.guidance = positive, negative, guidance
        self._kept.clear()

    @property
    def dtype(self) -> torch.dtype:
        """The data type that the denoiser works in."""
        return self.positive.dtype

    def context(self, items: Sequence[Item], branches: Sequence[Branch], path: Path) -> torch.Tensor:
        """Context of a micro-batch, branch after branch: (branches * items, tokens, width).

        Raises:
            ValueError: If the unconditional context is needed and was not given.
        """
        key = (tuple(items), tuple(branches), path)
        if key in self._kept:  # of the last micro-batch: a whole frame asks for the same in every step
            return self._kept[key]
        rows = []
        for branch in branches:
            context = self.negative
            if branch.context == "positive":
                context = self.positive if path.context is None else path.context.to(self.dtype)
            if context is None:
                raise ValueError(
                    "`negative_context`=None, but guidance needs it, as do windows that do not see the context. Give "
                    "it, or set guidance_scale=1."
                )
            if context.shape[1] != self.positive.shape[1]:
                raise ValueError(
                    f"A region's `context` has {context.shape[1]} tokens; the run's has {self.positive.shape[1]}. "
                    "Leave out what lies side by side with the run's (text, pictures), or mix it by weights."
                )
            rows.append(_rows(context, [image for image, _ in items]))
        self._kept.clear()
        self._kept[key] = torch.cat(rows)
        return self._kept[key]

    def keywords(self, items: Sequence[Item], branches: Sequence[Branch], step: Step, path: Path) -> dict[str, Any]:
        """Added conditions of a micro-batch, branch after branch, in the order of `context`.

        Raises:
            ValueError: If the path brings a pooled vector that nothing reads, or of another width.
        """
        if self.added is None:
            if path.pooled is not None:
                raise ValueError(_POOLED_IS_UNREAD)
            return {}
        rows = []
        for branch in branches:
            pooled = path.pooled if branch.context == "positive" else None
            for image, view in items:
                added = self.added(view, branch.context, step.latent_size)
                added = added if pooled is None else _with_pooled(added, pooled)
                rows.append(recursively_apply(partial(_rows, images=[image]), dict(added)))
        joined: Any = concatenate(rows)
        return joined

    def residuals(
        self,
        inputs: torch.Tensor,
        context: torch.Tensor,
        items: Sequence[Item],
        branches: Sequence[Branch],
        step: Step,
        added: Mapping[str, Any],
    ) -> Mapping[str, Any]:
        """Residuals of a micro-batch whose network inputs, context and added conditions are given."""
        total: dict[str, Any] = {}
        for control in self.control:
            if control.acts_at(step):
                image = control.cuts(items, step.latent_size, inputs)
                given: Any = control.residuals(inputs, step.timestep, context, image, **added)
                if control.positive_only:
                    counts = inputs.new_tensor([branch.context == "positive" for branch in branches])
                    given = recursively_apply(counts.repeat_interleave(len(items)).view(-1, 1, 1, 1).mul, given)
                for name, value in given.items():
                    total[name] = _sum(total[name], value) if name in total else value
        return total

    def with_channels(self, inputs: torch.Tensor, items: Sequence[Item], step: Step) -> torch.Tensor:
        """The network inputs (N, C, h, w) of a micro-batch with the extra channels below them, if there are any."""
        if self.extra_channels is None:
            return inputs
        whole = self.extra_channels(step.latent_size)
        cut = torch.cat([view.gather(_rows(whole, [image])) for image, view in items]).to(inputs)
        return torch.cat([inputs, cut.repeat(len(inputs) // len(items), 1, 1, 1)], dim=1)


def _with_pooled(added: Mapping[str, Any], pooled: torch.Tensor) -> Mapping[str, Any]:
    """Added conditions with another pooled vector."""
    group = added.get("added_cond_kwargs", {})
    if "text_embeds" not in group:
        raise ValueError(_POOLED_IS_UNREAD)
    before = group["text_embeds"]
    if before.shape[-1] != pooled.shape[-1]:
        raise ValueError(f"A region's `pooled` is {pooled.shape[-1]} wide; this run reads {before.shape[-1]}.")
    return {**added, "added_cond_kwargs": {**group, "text_embeds": pooled.to(before)}}


def _sum(first: Any, second: Any) -> Any:
    """The sum of two tensors, or of two lists of them entry by entry."""
    if isinstance(first, torch.Tensor):
        return first + second
    return [one + other for one, other in zip(first, second, strict=True)]


def _rows(values: torch.Tensor, images: Sequence[int]) -> torch.Tensor:
    if values.shape[0] == 1:
        return values.expand(len(images), *values.shape[1:])
    return values[list(images)]
