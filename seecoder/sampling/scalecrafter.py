"""ScaleCrafter: re-dilated convolutions, so that a UNet sees a large picture as it saw a small one.

Paper: He et al., "ScaleCrafter: Tuning-free Higher-Resolution Visual Generation with Diffusion Models", ICLR 2024,
arXiv 2310.07702. Re-dilation is in `redilation`, dispersion in `dispersion`; here are the schedule, noise-damped
guidance, and which layers are dilated how far (`scalecrafter_settings`).

Departures: factors are per axis (published: one factor for 2:1 pictures too); settings name resolution levels and
fail on patterns that match nothing (the released SDXL settings name layers that do not exist, and so leave the deepest
encoder level undilated); dispersion is really active when asked for (in every released configuration it is not);
guidance evaluates only the three branches that it uses, and at a scale of exactly 1, which means "no guidance" to every
method here, only the conditional one (Eq. 7 would still add its ground there); odd maps keep their size in strided
layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from seecoder.sampling.dispersion import closed_form_matrix, published_matrix
from seecoder.sampling.guidance import NEGATIVE, POSITIVE, ClassifierFree, rescaled
from seecoder.sampling.parts import Branch, Guidance, Run, Step
from seecoder.sampling.redilation import ReDilation
from seecoder.sampling.scalecrafter_settings import Factors, Settings, derived_settings, per_axis
from seecoder.sampling.views import Size

DAMPING = Branch("negative", "damping")


def noise_damped(base: torch.Tensor, negative: torch.Tensor, positive: torch.Tensor, scale: float) -> torch.Tensor:
    """Guided = base(x, nothing) + scale * (dilated(x, y) - dilated(x, nothing)) (Eq. 7)."""
    return base + scale * (positive - negative)


@dataclass(frozen=True)
class NoiseDamped:
    """Noise-damped classifier-free guidance: the direction from the dilated network, the ground from a weaker one.

    Attributes:
        scale: Guidance scale.
        until: First step of ordinary guidance.
        rescale: Share in [0, 1] of the rescaled prediction.
    """

    scale: float
    until: int
    rescale: float = 0.0

    def _ordinary(self) -> ClassifierFree:
        return ClassifierFree(self.scale, self.rescale)

    def branches(self, step: Step) -> Sequence[Branch]:
        """Three branches while damping, then those of ordinary guidance."""
        if step.index >= self.until:
            return self._ordinary().branches(step)
        return (DAMPING, NEGATIVE, POSITIVE)

    def combine(self, fields: Mapping[Branch, torch.Tensor], step: Step) -> torch.Tensor:
        """The guided prediction."""
        if step.index >= self.until:
            return self._ordinary().combine(fields, step)
        guided = noise_damped(fields[DAMPING], fields[NEGATIVE], fields[POSITIVE], self.scale)
        return rescaled(guided, fields[POSITIVE], self.rescale) if self.rescale else guided


@dataclass(frozen=True)
class ScaleCrafter:
    """Settings of ScaleCrafter; None takes what belongs to the network and the size (`derived_settings`).

    Shares of the trajectory are the published step numbers divided by the published 50 steps.

    Attributes:
        dilation: Pattern -> factor, or (rows, columns); patterns such as "level.1", "mid", "up.0.sampler".
        dilate_tau: Share of the trajectory, from its noisy end, in which layers are dilated (tau).
        progressive: Let the factors fall towards 2 over those steps.
        damping: Patterns of the weaker network that noise-damped guidance stands on; an empty mapping is the plain
            network (another function than the published one).
        damp_tau: Share of the trajectory with noise-damped guidance; 0 is ordinary guidance.
        disperse: Patterns of the dilated layers whose kernels are dispersed.
        disperse_tau: Share of the trajectory in which they are.
        dispersion: "closed_form" (ours), or the "published" least squares.
        dispersion_penalty: Weight of the high band in "closed_form"; 0.1 to 0.3.
    """

    role: ClassVar[str] = "network"

    dilation: Factors | None = None
    dilate_tau: float | None = None
    progressive: bool | None = None
    damping: Factors | None = None
    damp_tau: float | None = None
    disperse: Sequence[str] = ()
    disperse_tau: float = 0.6
    dispersion: Literal["closed_form", "published"] = "closed_form"
    dispersion_penalty: float = 0.1

    def settings(self, unet: object, native_size: Size, size: Size) -> Settings:
        """The settings for views of `size`: those given, the rest derived."""
        found = derived_settings(unet, native_size, size)
        given = {
            name: value
            for name in ("dilation", "dilate_tau", "progressive", "damping", "damp_tau")
            if (value := getattr(self, name)) is not None
        }
        for name in ("dilate_tau", "damp_tau", "disperse_tau"):
            value = given.get(name, 0.0) if name != "disperse_tau" else self.disperse_tau
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"`{name}`={value} must be a share of the trajectory, 0 to 1.")
        return found.replaced(**given)

    def patches(self, run: Run, view_size: Size) -> Mapping[str, Sequence[ReDilation]]:
        """The network in its dilated state, and in the weaker one that damping stands on.

        Raises:
            ValueError: If the run has no `unet`, or a pattern matches nothing.
        """
        if run.unet is None:
            raise ValueError("ScaleCrafter() changes layers of the network. Give sample() the `unet`.")
        settings = self.settings(run.unet, run.native_size, view_size)
        count = len(run.stepper)
        matrix = closed_form_matrix(self.dispersion_penalty) if self.dispersion == "closed_form" else published_matrix()
        main = ReDilation(
            run.unet,
            per_axis(settings.dilation),
            round(settings.dilate_tau * count),
            progressive=settings.progressive,
            disperse=self.disperse,
            disperse_until=round(self.disperse_tau * count),
            matrix=matrix,
        )
        if settings.damp_tau == 0.0:
            return {"main": [main]}
        damping = ReDilation(
            run.unet,
            per_axis(settings.damping),
            round(settings.damp_tau * count),
            progressive=settings.progressive,
            disperse=self.disperse,  # of them those that it dilates
            disperse_until=round(self.disperse_tau * count),
            matrix=matrix,
        )
        return {"main": [main], "damping": [damping]}

    def guidance(self, run: Run, view_size: Size) -> Guidance:
        """Noise-damped guidance for as long as the settings say."""
        settings = self.settings(run.unet, run.native_size, view_size)
        until = round(settings.damp_tau * len(run.stepper))
        if until == 0 or run.guidance_scale == 1.0:  # without guidance there is nothing to damp
            return ClassifierFree(run.guidance_scale, run.guidance_rescale)
        return NoiseDamped(run.guidance_scale, until, run.guidance_rescale)
