"""How unlike two pictures look to a network: LPIPS, or the same without learned weights on any timm pyramid.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (2018), section 3: features are
normalised to unit length at each place, and squared differences averaged.
"""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from seecoder.lpips import load_lpips
from seecoder.weights.safetensors_files import read_safetensors
from seecoder.weights.strict_loading import load_strict


class PerceptualDistance(nn.Module):
    """Distance of two batches of pictures, summed over the network's maps.

    Args:
        network: Maps (N, 3, H, W) in [0, 1] to a list of maps. It is frozen.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Mean distance of (N, 3, H, W) pictures in [-1, 1]; zero for equal ones."""
        ours, theirs = self.network((first + 1) / 2), self.network((second + 1) / 2)
        distances = [
            (functional.normalize(one.float(), dim=1) - functional.normalize(other.float(), dim=1))
            .square()
            .sum(1)
            .mean()
            for one, other in zip(ours, theirs, strict=True)
        ]
        return torch.stack(distances).sum()


def load_distance(path: str | Path) -> nn.Module:
    """Load what gives the distances of pairs of (N, 3, H, W) pictures in [-1, 1]: one for each pair, or their mean.

    Args:
        path: LPIPS weights that `scripts/convert_lpips.py` wrote, a file or a folder, of which VGG16 is taken; or a
            folder that `world_backbone.yaml` wrote: config.json and model.safetensors.

    Raises:
        FileNotFoundError: There are neither.
        WeightsError: The weights do not fit.
    """
    folder = Path(path)
    if folder.is_file() or (folder / "vgg.safetensors").is_file():
        return load_lpips(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            advice = "give LPIPS weights (scripts/convert_lpips.py), or train a backbone with world_backbone.yaml"
            raise FileNotFoundError(f"`perceptual_network`={folder} has no {name}; {advice}.")
    config = json.loads((folder / "config.json").read_text())
    network: Any = timm.create_model(config["backbone"], features_only=True, **config["backbone_args"])
    load_strict(network, read_safetensors(folder / "model.safetensors")[0], source=str(folder))
    return PerceptualDistance(network)
