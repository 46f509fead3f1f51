"""Pictures as tokens, by a SeeCoder: what the encoder sees takes the place of words."""

from pathlib import Path
from typing import Any

from torch import Tensor

from seecoder.encoder.model import SeeCoder
from train.conditioners.channels import ConditionPart
from train.stages.stage import save_half


class ImageTokens(ConditionPart):
    """The context of each picture; no condition is zeros, as everywhere for image contexts.

    The exported base is whole: `SeeCoderPipeline.from_pretrained` takes pictures for it.

    Args:
        context_dim: Width of a token, and of the encoder's.
        encoder: Folder or repository of a saved encoder.
        train_encoder: Train it with the UNet, all but its backbone; otherwise it is frozen.
    """

    def __init__(self, context_dim: int, encoder: str, train_encoder: bool = False) -> None:
        super().__init__()
        self.encoder = SeeCoder.from_pretrained(encoder)
        if (width := self.encoder.config["context_dim"]) != context_dim:
            raise ValueError(f"`context_dim`={context_dim} must be {width}, as wide as {encoder}. Change one of them.")
        self.frozen_names = ("encoder.backbone",) if train_encoder else ("encoder",)

    def forward(self, batch: dict[str, Any], keep: Tensor) -> Tensor:
        """Encode `pixels` (N, 3, S, S) uint8 as (N, T, context_dim), zeros where `keep` (N,) is False."""
        context = self.encoder(batch["pixels"].float() / 255)
        return context * keep.to(context.device)[:, None, None]

    def export(self, base: Path) -> dict[str, Any]:
        """Write `encoder/`."""
        save_half(self.encoder, base / "encoder")
        return {"_class_name": "SeeCoderPipeline", "encoder": ["seecoder.encoder", "SeeCoder"]}
