"""What a base is told beside noisy latents: the base of all conditioners, and dense conditions as channels.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022), section 3.3: tokens go to
cross-attention; what has a value at every place becomes channels below the latents.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d


class ConditionPart(ModelMixin, ConfigMixin):
    """One condition, as tokens or as channels; several stand beside each other.

    A subclass is made with the width of a token, the UNet's `cross_attention_dim`, as its first argument.

    Attributes:
        num_channels: How many channels it gives; 0 for one that gives tokens.
        frozen_names: Modules in it that are not trained with the UNet: they stay in evaluation mode.
    """

    num_channels = 0
    frozen_names: tuple[str, ...] = ()

    def train(self, mode: bool = True) -> "ConditionPart":
        """Switch modes, but for what is frozen."""
        super().train(mode)
        for name in self.frozen_names:
            self.get_submodule(name).eval()
        return self

    def export(self, base: Path) -> dict[str, Any]:
        """Write its weights, if it has any, into a base's folder; give its entries in `model_index.json`."""
        return {}


class Channels(ConditionPart):
    """A mask with the masked picture, a small picture, a semantic map: columns of a batch below the latents.

    Nothing is learned or dropped: the UNet's first convolution reads them always. So a trained network also works on
    larger pictures than it was trained on (section 4.3.2).

    Args:
        context_dim: Width of a token, of no matter here.
        columns: Columns of a batch, (N, channels, H, W), and how many channels each has. Those that are larger than the
            latents are averaged down to their size.
    """

    def __init__(self, context_dim: int, columns: dict[str, int]) -> None:
        super().__init__()
        self.columns = columns
        self.num_channels = sum(columns.values())

    def forward(self, batch: dict[str, Any], size: tuple[int, int]) -> Tensor:
        """Give the columns in their order for latents of (height, width) `size`, (N, num_channels, *size)."""
        return torch.cat([adaptive_avg_pool2d(batch[name].float(), size) for name in self.columns], dim=1)
