"""ScaleCrafter: re-dilated convolutions, so that a UNet sees a large picture as it saw a small one.

Paper: He et al., "ScaleCrafter: Tuning-free Higher-Resolution Visual Generation with Diffusion Models", ICLR 2024,
arXiv 2310.07702. Re-dilation is in `redilation`, dispersion in `dispersion`; here are the schedule, noise-damped
guidance, and which layers are dilated how far (`layer_settings`).

Departures: factors are per axis (published: one factor for 2:1 pictures too); settings name resolution levels and
fail on patterns that match nothing (the released SDXL settings name layers that do not exist, and so leave the deepest
encoder level undilated); dispersion is really active when asked for (in every released configuration it is not);
guidance evaluates only the three branches that it uses, and at a scale of exactly 1, which means "no guidance" to every
method here, only the conditional one (Eq. 7 would still add its ground there); odd maps keep their size in strided
layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch

from seecoder.checks import FLAG, check, choice, number, optional
from seecoder.sampling.guidance import NEGATIVE, POSITIVE, Branch, ClassifierFree, rescaled
from seecoder.sampling.methods.scalecrafter.dispersion import closed_form_matrix, published_matrix
from seecoder.sampling.methods.scalecrafter.layer_settings import (
    FACTORS,
    PATTERNS,
    Factors,
    Settings,
    derived_settings,
    per_axis,
)
from seecoder.sampling.methods.scalecrafter.redilation import ReDilation
from seecoder.sampling.methods.setting_rules import TRAJECTORY_FRACTION
from seecoder.sampling.methods.unet_levels import select
from seecoder.sampling.recipe import NetworkMethod
from seecoder.sampling.stages import Run
from seecoder.sampling.step import Step
from seecoder.sampling.views import Size

DAMPING = Branch("negative", "damping")


def noise_damped(base: torch.Tensor, negative: torch.Tensor, positive: torch.Tensor, scale: float) -> torch.Tensor:
    """Guided = base(x, nothing) + scale * (dilated(x, y) - dilated(x, nothing)) (Eq. 7)."""
    return base + scale * (positive - negative)


@dataclass(frozen=True)
class NoiseDamped(ClassifierFree):
    """Noise-damped classifier-free guidance: the direction comes from the dilated network, the base from a weaker one.

    Attributes:
        until: First step of ordinary guidance.
    """

    until: int = field(kw_only=True)

    def branches(self, step: Step) -> Sequence[Branch]:
        """Three branches while damping, then those of ordinary guidance."""
        is_damped = step.index < self.until and self.scale_at(step) != 1.0
        return (DAMPING, NEGATIVE, POSITIVE) if is_damped else super().branches(step)

    def combine(self, fields: Mapping[Branch, torch.Tensor], step: Step) -> torch.Tensor:
        """The guided prediction."""
        if DAMPING not in self.branches(step):
            return super().combine(fields, step)
        guided = noise_damped(fields[DAMPING], fields[NEGATIVE], fields[POSITIVE], self.scale_at(step))
        return rescaled(guided, fields[POSITIVE], self.rescale) if self.rescale else guided


@dataclass(frozen=True)
class ScaleCrafter(NetworkMethod):
    """Settings of ScaleCrafter; None takes what belongs to the network and the size (`derived_settings`).

    Fractions of the trajectory are the published step numbers divided by the published 50 steps. Layers are dilated for
    views of more than the native area, or with an axis of more than 1.5 times the native side (2 for SDXL, which was
    trained up to there). In a cascade, whose first stage has the native area at any aspect, the area alone decides.

    Attributes:
        dilation: Pattern -> factor, or (rows, columns); patterns such as "level.1", "mid", "up.0.sampler".
        dilate_tau: Fraction of the trajectory, from its noisy end, in which layers are dilated (tau).
        progressive: Let the factors fall towards 2 over those steps.
        damping: Patterns of the weaker network that noise-damped guidance stands on; an empty mapping is the plain
            network (another function than the published one).
        damp_tau: Fraction of the trajectory with noise-damped guidance; 0 is ordinary guidance.
        disperse: Pattern or patterns of the dilated layers whose kernels are dispersed.
        disperse_tau: Fraction of the trajectory in which they are.
        dispersion: "closed_form" (ours), or the "published" least squares.
        dispersion_penalty: Weight of the high band in "closed_form"; 0.1 to 0.3.
    """

    per_axis: ClassVar[bool] = True

    dilation: Factors | None = None
    dilate_tau: float | None = None
    progressive: bool | None = None
    damping: Factors | None = None
    damp_tau: float | None = None
    disperse: str | Sequence[str] = ()
    disperse_tau: float = 0.6
    dispersion: Literal["closed_form", "published"] = "closed_form"
    dispersion_penalty: float = 0.1

    def __post_init__(self) -> None:
        check(
            self,
            dilation=optional(FACTORS),
            dilate_tau=optional(TRAJECTORY_FRACTION),
            progressive=optional(FLAG),
            damping=optional(FACTORS),
            damp_tau=optional(TRAJECTORY_FRACTION),
            disperse=PATTERNS,
            disperse_tau=TRAJECTORY_FRACTION,
            dispersion=choice("closed_form", "published"),
            dispersion_penalty=number(0.0),
        )

    def settings(self, unet: object, native_size: Size, size: Size) -> Settings:
        """The settings for views of `size`: those given, the rest derived."""
        found = derived_settings(unet, native_size, size)
        given = {
            name: value
            for name in ("dilation", "dilate_tau", "progressive", "damping", "damp_tau")
            if (value := getattr(self, name)) is not None
        }
        return replace(found, **given)

    def patches(self, run: Run, view_size: Size) -> Mapping[str, Sequence[ReDilation]]:
        """The network in its dilated state, and in the weaker one that damping stands on."""
        settings = self.settings(run.unet, run.native_size, view_size)
        count = len(run.stepper)
        # A stage on the way may do without what the result's size has.
        self._check_effects(run.unet, self.settings(run.unet, run.native_size, run.size))
        matrix = closed_form_matrix(self.dispersion_penalty) if self.dispersion == "closed_form" else published_matrix()

        def state(factors: Factors, tau: float) -> list[ReDilation]:
            return [
                ReDilation(
                    run.unet,
                    per_axis(factors),
                    round(tau * count),
                    progressive=settings.progressive,
                    disperse=self._dispersed(),  # of them those that it dilates
                    disperse_until=round(self.disperse_tau * count),
                    matrix=matrix,
                )
            ]

        main = {"main": state(settings.dilation, settings.dilate_tau)}
        return main if settings.damp_tau == 0.0 else main | {"damping": state(settings.damping, settings.damp_tau)}

    def check_layers(self, unet: Any) -> None:
        """Refuse patterns that match nothing."""
        for pattern in (*(self.dilation or ()), *(self.damping or ()), *self._dispersed()):
            select(unet, pattern)

    def _dispersed(self) -> Sequence[str]:
        """The patterns of `disperse` as a list."""
        return [self.disperse] if isinstance(self.disperse, str) else self.disperse

    def _check_effects(self, unet: Any, settings: Settings) -> None:
        """Refuse settings that the user gave and that would do nothing."""
        if self.damping is not None and self.damp_tau is None and settings.damp_tau == 0.0:
            raise ValueError(
                f"`damping` has no effect on {type(unet).__name__} at this size, where guidance is not damped. Set "
                "`damp_tau`, the fraction of the trajectory in which it is (published: 0.7), or leave `damping` out."
            )
        factors: dict[torch.nn.Conv2d, float] = {}
        for pattern, factor in per_axis(settings.dilation).items():
            factors |= dict.fromkeys(select(unet, pattern).values(), max(factor))
        for pattern in self._dispersed():
            if not any(factors.get(conv, 1.0) > 1.0 for conv in select(unet, pattern).values()):
                raise ValueError(
                    f"`disperse` names {pattern!r}, of which no layer is dilated; only dilated layers are dispersed. "
                    f"Add it to `dilation`, or leave it out. Dilated are: {', '.join(settings.dilation)}."
                )

    def guidance(self, run: Run, view_size: Size) -> ClassifierFree:
        """Noise-damped guidance for as long as the settings say."""
        until = round(self.settings(run.unet, run.native_size, view_size).damp_tau * len(run.stepper))
        if until == 0 or run.guidance_scale == 1.0:  # without guidance there is nothing to damp
            return super().guidance(run, view_size)
        return NoiseDamped(run.guidance_scale, run.guidance_rescale, until=until)
