"""LPIPS: how unlike two pictures look to a network that knows photographs.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, section 3. A trunk
that was trained on ImageNet gives five maps. At each place they are scaled to unit length; squared differences are
weighed by a head, which has one learned number a channel, and averaged over the places.

Weights come from safetensors files that `scripts/convert_lpips.py` writes. Nothing is downloaded here.
"""

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import alexnet, vgg16

from seecoder.checks import choice, require
from seecoder.weights.safetensors_files import WeightsError, read_safetensors
from seecoder.weights.strict_loading import load_strict

# Trunks, and after how many of their layers each map is taken: the outputs of five ReLUs.
_TRUNKS = {"alex": (alexnet, (2, 5, 8, 10, 12)), "vgg": (vgg16, (4, 9, 16, 23, 30))}
NETWORKS = tuple(_TRUNKS)


class LPIPS(nn.Module):
    """The distance, and the maps that it is made of; frozen, and always in float32. `load_lpips` fills it.

    Args:
        network: "alex" or "vgg" (VGG16).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: str = "vgg") -> None:
        super().__init__()
        require("network", network, choice(*NETWORKS))
        build, self._ends = _TRUNKS[network]
        with torch.device("meta"):  # its classifier would take half a gigabyte
            layers = build(weights=None).features[: self._ends[-1]]
        for layer in layers:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False
        self.features = layers.to_empty(device="cpu")
        widths = [self.features[end - 2].out_channels for end in self._ends]
        self.heads = nn.ParameterList(torch.ones(1, width, 1, 1) for width in widths)
        # ImageNet's mean and standard deviation, for pixels in [-1, 1], as LPIPS rounds them.
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Give the trunk's five maps, from fine to coarse.

        Args:
            images: (N, 3, H, W) in [-1, 1]; sides of 16 pixels at least, of 32 with AlexNet.

        Returns:
            Five (N, C, h, w) float32. The last one of VGG16, averaged over places, gives the (N, 512) of a VGG-FID.
        """
        values, maps = (images.float() - self.mean) / self.std, []
        for start, end in pairwise((0, *self._ends)):
            values = self.features[start:end](values)
            maps.append(values)
        return maps

    def forward(self, images: Tensor, references: Tensor) -> Tensor:
        """Distances of pairs: two (N, 3, H, W) in [-1, 1] -> (N,) float32; zero for equal ones."""
        with torch.autocast(images.device.type, enabled=False):  # half precision underflows in the gradient
            pairs = zip(self.maps(images), self.maps(references), self.heads, strict=True)
            return torch.stack([_weighed(one, other, head) for one, other, head in pairs]).sum(0)


def _weighed(one: Tensor, other: Tensor, head: Tensor) -> Tensor:
    """Distance by a single map of each picture: (N, C, h, w), (N, C, h, w) -> (N,)."""
    difference = (_unit_length(one) - _unit_length(other)).square()
    return (difference * head).sum(1).mean((1, 2))


def _unit_length(values: Tensor) -> Tensor:
    return values / (values.square().sum(1, keepdim=True) + 1e-8).sqrt()


def load_lpips(path: str | os.PathLike[str], network: str = "vgg") -> LPIPS:
    """Read LPIPS from a file, or from a folder that `scripts/convert_lpips.py` wrote.

    Args:
        path: The folder, with `alex.safetensors` and `vgg.safetensors`; or one such file, whatever its name.
        network: "alex" or "vgg": which file of a folder. A file says itself which network it holds.

    Returns:
        The network, on the CPU, in evaluation mode, without gradients for its weights.

    Raises:
        FileNotFoundError: There is no such file.
        WeightsError: It is damaged, or holds something else.
        ValueError: `network` is another word.
    """
    require("network", network, choice(*NETWORKS))
    file = Path(path) / f"{network}.safetensors" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"`path`={path} has no LPIPS weights; scripts/convert_lpips.py writes {file}.")
    tensors, metadata = read_safetensors(file)
    found: Any = metadata.get("network")
    if found not in NETWORKS:
        raise WeightsError(f"`path`={file} has no LPIPS weights; scripts/convert_lpips.py writes such files.")
    module = LPIPS(found)
    load_strict(module, tensors, source=str(file))
    return module
