"""What a call of our pipelines returns."""

from dataclasses import dataclass, field
from typing import Any

from diffusers.utils import BaseOutput


@dataclass
class SeeCoderPipelineOutput(BaseOutput):
    """Pictures, and what had to be done differently to get them.

    Attributes:
        images: a list of PIL images, an array (N, H, W, 3) in [0, 1], a tensor (N, 3, H, W) in [0, 1], or the latents
            (N, C, h, w), by `output_type`.
        notes: one sentence for everything that was not done as asked: a decode repeated in float32, or done in tiles.
            Empty when all went as asked.
    """

    images: Any
    notes: list[str] = field(default_factory=list)
