"""A small timm pyramid pretrained on the world's attributes: the stand-in for ImageNet's Swin.

A backbone that is sure of an attribute is what lets an encoder carry it: with a shape accuracy of 0.3 to 0.7 the noise
loss alone never teaches shape, however long it trains. So watch the held-out loss, not just the accuracy.
"""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from data.world.scenes import ATTRIBUTES, LAYOUT
from seecoder.weights.atomic import atomic_directory
from train.settings import OptimizerSettings
from train.sources.world_data import chunks
from train.stages.stage import Stage

LAYOUT_UNIT = 0.1  # of the frame; about the spread of these numbers, so that their gradients match the others


class AttributeHeads(nn.Module):
    """Reads attributes from the mean of every map, and place and size from the coarsest map itself.

    Args:
        channels: Channels of each map, finest first.
        coarsest_size: Height and width of the coarsest map.
    """

    def __init__(self, channels: tuple[int, ...], coarsest_size: int) -> None:
        super().__init__()
        self.attributes = nn.ModuleDict(
            {name: nn.Linear(sum(channels), len(names)) for name, names in ATTRIBUTES.items()}
        )
        self.layout = nn.Linear(channels[-1] * coarsest_size**2, len(LAYOUT))

    def forward(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """Logits (N, classes) of each attribute, and `layout` (N, 3) in fractions of the frame."""
        pooled = torch.cat([level.mean((2, 3)) for level in maps], dim=1)
        logits = {name: head(pooled) for name, head in self.attributes.items()}
        return logits | {"layout": self.layout(maps[-1].flatten(1))}


class BackboneStage(Stage):
    """Trains a timm pyramid with batch or layer normalisation on pictures in [0, 1]; exports `backbone/`.

    An average of the weights meets the batch statistics of training, so keep it short or switch it off.

    Args:
        optimizer: The optimizer and its learning rate.
        backbone: A model name of timm that has a pyramid.
        backbone_args: Overrides for timm; the same go into `SeeCoder(backbone_args=...)`.
        image_size: Height and width of the pictures.
        layout_weight: Weight of the loss on place and size; measured in tenths of the frame.
        label_smoothing: Of the attributes' cross-entropy.
        noise: Standard deviation of pixel noise in training, drawn anew for each picture from 0 to this.
        **options: Those of `Stage`.
    """

    def __init__(
        self,
        optimizer: OptimizerSettings,
        backbone: str = "resnet10t",
        backbone_args: dict[str, Any] | None = None,
        image_size: int = 64,
        layout_weight: float = 0.3,
        label_smoothing: float = 0.0,
        noise: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(optimizer, **options)
        self.backbone_name, self.backbone_args = backbone, dict(backbone_args or {})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model: Any = timm.create_model(backbone, pretrained=False, features_only=True, **self.backbone_args)
            channels, strides = model.feature_info.channels(), model.feature_info.reduction()
            self.heads = AttributeHeads(tuple(channels), -(-image_size // strides[-1]))
        self.backbone = model.to(memory_format=torch.channels_last)
        self.layout_weight, self.label_smoothing, self.noise = layout_weight, label_smoothing, noise
        self.figures: dict[str, float] = {}

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Sum of cross-entropies, and the error of place and size."""
        pixels = batch["pixels"].float().div_(255)
        if self.noise:
            level = self.noise * torch.rand(len(pixels), 1, 1, 1, device=pixels.device)
            pixels = pixels + level * torch.randn_like(pixels)
        losses = self._losses(self._read(pixels), batch["scenes"])
        for name, value in losses.items():
            self.record(name, value)
        return sum(losses.values(), torch.zeros((), device=pixels.device))

    def _read(self, pixels: Tensor) -> dict[str, Tensor]:
        return self.heads(self.backbone(pixels.contiguous(memory_format=torch.channels_last)))

    def _losses(self, output: dict[str, Tensor], scenes: dict[str, Tensor]) -> dict[str, Tensor]:
        losses = {
            name: functional.cross_entropy(output[name].float(), scenes[name], label_smoothing=self.label_smoothing)
            for name in ATTRIBUTES
        }
        place = torch.stack([scenes[name] for name in LAYOUT], dim=1)
        losses["layout"] = self.layout_weight * functional.smooth_l1_loss(
            output["layout"].float() / LAYOUT_UNIT, place / LAYOUT_UNIT
        )
        return losses

    def evaluate(self) -> dict[str, float]:
        """Accuracy of each attribute on held-out scenes, the classifier's loss, the mean error of place and size."""
        data = self.data
        count = len(data.held_out_pixels)
        totals = {f"accuracy_{name}": 0.0 for name in ATTRIBUTES} | {"held_out_loss": 0.0, "layout_error": 0.0}
        for part in chunks(count, 128):
            scenes = {name: column.to(self.device) for name, column in vars(data.held_out_scenes[part]).items()}
            output = self._read(data.held_out_pixels[part].to(self.device).float() / 255)
            losses = self._losses(output, scenes)
            size = part.stop - part.start
            totals["held_out_loss"] += size * float(sum(losses[name] for name in ATTRIBUTES))
            place = torch.stack([scenes[name] for name in LAYOUT], dim=1)
            totals["layout_error"] += size * float((output["layout"] - place).abs().mean())
            for name in ATTRIBUTES:
                totals[f"accuracy_{name}"] += float((output[name].argmax(1) == scenes[name]).sum())
        self.figures = {name: total / count for name, total in totals.items()}
        return self.figures

    def export(self, folder: Path) -> None:
        """Write `backbone/`: model.safetensors with timm's keys in half precision, and config.json."""
        state = {key: half(value).cpu().contiguous() for key, value in self.backbone.state_dict().items()}
        config = {"backbone": self.backbone_name, "backbone_args": self.backbone_args, "held_out": self.figures}
        with atomic_directory(folder / "backbone", overwrite=True) as temporary:
            save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})
            (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def half(tensor: Tensor) -> Tensor:
    """Half precision for weights, nothing for counters.

    Raises:
        ValueError: A value does not fit into half precision.
    """
    if not tensor.is_floating_point():
        return tensor
    converted = tensor.detach().half()
    if not bool(converted.isfinite().all()):
        raise ValueError("A weight is too large for half precision, or not a number.")
    return converted
