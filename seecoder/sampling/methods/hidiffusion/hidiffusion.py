"""HiDiffusion: deep features kept at the size that the network knows, and self-attention in shifted windows.

Paper: Zhang et al., "HiDiffusion: Unlocking Higher-Resolution Creativity and Efficiency in Pretrained Diffusion
Models", ECCV 2024, arXiv 2311.17528. RAU-Net: for the first part of the trajectory one downsampler shrinks more than it
was trained to (a larger stride, dilated to match), and the upsampler on the same level brings the features back.
MSW-MSA: the self-attention of the outermost level with attention runs in 2 x 2 windows, shifted from step to step.

The step comes from the engine, never from counters inside modules, so an interrupted run leaves no state behind; the
shift is a function of the step, so it depends on nothing else.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from seecoder.base_model.facts import is_sdxl
from seecoder.checks import FLAG, check, optional, whole
from seecoder.sampling.methods.hidiffusion.feature_sizes import Shrink
from seecoder.sampling.methods.hidiffusion.window_attention import WindowAttention
from seecoder.sampling.methods.setting_rules import TRAJECTORY_FRACTION
from seecoder.sampling.methods.unet_levels import num_levels
from seecoder.sampling.path import Patches
from seecoder.sampling.recipe import NetworkMethod
from seecoder.sampling.stages import Run
from seecoder.sampling.views import Size

_SDXL_LEVELS = 3
_BLOCKS = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"}


@dataclass(frozen=True)
class HiDiffusion(NetworkMethod):
    """Settings of HiDiffusion; None takes what is published for the scale.

    Views of no more than the native area are left alone, whatever their aspect.

    Attributes:
        level: Level below which features are kept small: its downsampler shrinks more (None: 1 for SDXL, else 0).
        shrink_tau: Fraction of the trajectory with small deep features (T1: 0.4; 0.7 from four times native on).
        full_shrink_tau: Fraction in which features shrink by the whole scale, and not only by 2 (T2: 0; 0.3).
        window_attention: Self-attention in windows; faster, and closer to the attention that was trained.
    """

    per_axis: ClassVar[bool] = False  # both axes shrink alike, and a short one must not

    level: int | None = None
    shrink_tau: float | None = None
    full_shrink_tau: float | None = None
    window_attention: bool = True

    def __post_init__(self) -> None:
        check(
            self,
            level=optional(whole(0)),
            shrink_tau=optional(TRAJECTORY_FRACTION),
            full_shrink_tau=optional(TRAJECTORY_FRACTION),
            window_attention=FLAG,
        )

    def check_layers(self, unet: Any) -> None:
        """Refuse a given level that has no downsampler, and blocks of other kinds than Stable Diffusion's."""
        if self.level is not None:
            self._level(unet)
        if strange := {type(block).__name__ for block in (*unet.down_blocks, *unet.up_blocks)} - _BLOCKS:
            raise ValueError(f"`unet` has a {min(strange)}, which HiDiffusion cannot change. Use another method.")

    def patches(self, run: Run, view_size: Size) -> Patches:
        """Small deep features, and window attention where it is wanted."""
        level = self._level(run.unet)
        scale = max(view_size[0] / run.native_size[0], view_size[1] / run.native_size[1])
        late, early = (0.7, 0.3) if scale >= 3.5 else (0.4, 0.0)
        late = late if self.shrink_tau is None else self.shrink_tau
        early = early if self.full_shrink_tau is None else self.full_shrink_tau
        count = len(run.stepper)
        shrink = Shrink(run.unet, level, max(2, round(scale)), round(early * count), round(late * count))
        return {"main": [shrink, WindowAttention(run.unet)] if self.window_attention else [shrink]}

    def _level(self, unet: Any) -> int:
        levels = num_levels(unet)
        level = self.level if self.level is not None else int(levels == _SDXL_LEVELS and is_sdxl(unet))
        if not 0 <= level < levels - 1:
            raise ValueError(f"`level`={level} has no downsampler; this UNet has them on levels 0 to {levels - 2}.")
        return level
