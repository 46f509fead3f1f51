"""Classes, and layouts of labelled boxes, as tokens (Rombach et al. 2022, section 4.3.1)."""

import math
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from train.conditioners.channels import ConditionPart


class LabelTokens(ConditionPart):
    """A token for each label: the class of a picture, or a layout of labelled boxes. Zeros are no condition.

    Classes are tokens, as in LDM, and not the class embedding of `UNet2DConditionModel`: that is added to the time, so
    zeros are no null, and it takes one class for a picture. An exported base has them in `label_tokens/`.

    Args:
        context_dim: Width of a token.
        num_labels: How many labels there are.
        octaves: How many octaves encode each side of a label's box; 0 for classes, which have no place.
    """

    @register_to_config
    def __init__(self, context_dim: int, num_labels: int, octaves: int = 0) -> None:
        super().__init__()
        self.labels = nn.Embedding(num_labels, context_dim)
        self.norm = nn.LayerNorm(context_dim)
        self.octaves, self.place = octaves, None
        if octaves:
            first, last = nn.Linear(8 * octaves, context_dim), nn.Linear(context_dim, context_dim)
            self.place = nn.Sequential(first, nn.SiLU(), last)

    def forward(self, batch: dict[str, Any], keep: Tensor) -> Tensor:
        """Encode `labels` (N, L), -1 for none, as (N, L, context_dim), which are zero where `keep` (N,) is False.

        `boxes` (N, L, 4) are top, left, bottom, right in fractions of the picture.
        """
        labels = batch["labels"]
        tokens = self.labels(labels.clamp(min=0))
        if self.place is not None:
            periods = math.pi * 2.0 ** torch.arange(self.octaves, device=labels.device)
            phases = (batch["boxes"].unsqueeze(-1) * periods).flatten(2)
            tokens = tokens + self.place(torch.cat([phases.sin(), phases.cos()], dim=2))
        is_told = (labels >= 0) & keep.to(labels.device).unsqueeze(1)
        return self.norm(tokens) * is_told.unsqueeze(2)

    def export(self, base: Path) -> dict[str, Any]:
        """Write `label_tokens/`."""
        self.save_pretrained(base / "label_tokens")
        return {}
