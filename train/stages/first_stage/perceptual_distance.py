"""How unlike two pictures look to a network: LPIPS, or the same without learned weights on any timm pyramid.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (2018), section 3: features are
normalised to unit length at each place, and squared differences averaged.
"""

from pathlib import Path

from torch import Tensor, nn

from seecoder.evaluation.feature_networks import load_backbone, map_distance
from seecoder.lpips import load_lpips


class PerceptualDistance(nn.Module):
    """`map_distance` of two batches of pictures.

    Args:
        network: Maps (N, 3, H, W) in [0, 1] to a list of maps. It is frozen.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Mean distance of (N, 3, H, W) pictures in [-1, 1]; zero for equal ones."""
        return map_distance(self.network((first + 1) / 2), self.network((second + 1) / 2)).mean()


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
    return PerceptualDistance(load_backbone(folder))
