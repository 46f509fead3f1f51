"""Networks that measures look through, each from a path on this machine; nothing is ever downloaded.

* transformers' vision models in a folder: CLIP gives CLIP-I, DINO gives DINO-I;
* LPIPS in a file (`seecoder.lpips`): the distance, and its trunk, for a VGG-FID;
* backbones in a folder, such as the world's.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from seecoder.encoder.backbones.pretrained_weights import load_pretrained
from seecoder.encoder.backbones.timm_backbones import build_backbone
from seecoder.lpips import load_lpips
from seecoder.weights.safetensors_files import WeightsError

_WORLD_SIDE, _IMAGENET_SIDE = 64, 224  # pixels that networks of the world, and of photographs, were trained at
Maps = Callable[[Tensor], list[Tensor]]  # (N, 3, H, W) in [0, 1] -> maps (N, C, h, w) from fine to coarse


@dataclass(frozen=True)
class Network:
    """A network as measures see it, given by its functions.

    Attributes:
        name: What the output calls it.
        embed: (1, 3, H, W) in [0, 1] -> features (1, D) of the whole picture.
        similarity: What the cosine of two pictures' features is called.
        maps: Its maps; None for a network without.
        distance: Perceptual distance of (N, 3, H, W) and (N, 3, H, W) in [0, 1], (N,); None for none.
        distance_name: What that is called.
    """

    name: str
    embed: Callable[[Tensor], Tensor]
    similarity: str = "similarity"
    maps: Maps | None = None
    distance: Callable[[Tensor, Tensor], Tensor] | None = None
    distance_name: str = "lpips"


def map_network(name: str, module: Maps, side: int, device: str | torch.device = "cpu") -> Network:
    """Make a network of its maps; a picture's feature is the coarsest one's mean, of a square of `side` pixels."""

    def maps(pixels: Tensor) -> list[Tensor]:
        return module(pixels.to(device))

    def embed(pixels: Tensor) -> Tensor:
        square = interpolate(pixels, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        return maps(square)[-1].mean((2, 3))

    def distance(first: Tensor, second: Tensor) -> Tensor:
        return map_distance(maps(first), maps(second))

    return Network(name, embed, "similarity", maps, distance, "map_distance")


def map_distance(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """Distance of two pictures' maps, (N, C, h, w) each, in the form of LPIPS without learned weights; (N,).

    Zhang et al., CVPR 2018, section 3: squared differences of features of unit length, averaged over places, summed
    over maps.
    """
    pairs = [(normalize(one.float()), normalize(other.float())) for one, other in zip(first, second, strict=True)]
    return torch.stack([(one - other).square().sum(1).mean((1, 2)) for one, other in pairs]).sum(0)


def open_network(path: Path, device: str | torch.device = "cpu") -> Network:
    """Open one of the networks in this module's header.

    Raises:
        FileNotFoundError: The path is of no such network.
        WeightsError: Its weights do not fit.
    """
    name = os.path.relpath(path)
    if path.is_file():
        lpips = load_lpips(path).to(device)
        trunk = map_network(name, lambda pixels: lpips.maps(2 * pixels - 1), _IMAGENET_SIDE, device)
        return replace(
            trunk, distance=lambda *pair: lpips(*(2 * x.to(device) - 1 for x in pair)), distance_name="lpips"
        )
    kind = _config(path).get("model_type")
    if kind is not None:
        return _from_transformers(name, path, kind, device)
    return map_network(name, load_backbone(path).to(device), _WORLD_SIDE, device)


def load_backbone(path: Path) -> nn.Module:
    """Read the backbone of a folder that `world_backbone.yaml` wrote, in evaluation mode; errors as `open_network`."""
    config = _config(path)
    if "backbone" not in config or "_class_name" in config:
        raise FileNotFoundError(
            f"`{path}` has no config.json of a network; give a file of LPIPS (scripts/convert_lpips.py writes it), or "
            "the folder of a backbone (world_backbone.yaml) or, to measure, of a vision model of transformers."
        )
    backbone = build_backbone(config["backbone"], config.get("backbone_args"))
    load_pretrained(backbone, path, name=str(path))
    return backbone.eval()


def _config(path: Path) -> dict[str, Any]:
    """The config.json of a folder; nothing if there is none."""
    try:
        return json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _from_transformers(name: str, path: Path, kind: str, device: str | torch.device) -> Network:
    from transformers import AutoImageProcessor, AutoModel, CLIPVisionModelWithProjection

    is_clip = kind.startswith("clip")
    model_class: Any = CLIPVisionModelWithProjection if is_clip else AutoModel
    local = {"local_files_only": True}
    model, report = model_class.from_pretrained(path, **local, use_safetensors=True, output_loading_info=True)
    missing = [key for key in report["missing_keys"] if not key.startswith("pooler.")]  # DINO has none
    if missing:
        raise WeightsError(f"`network`={path} has no weights for {len(missing)} tensors, such as {missing[0]}.")
    processor: Any = AutoImageProcessor.from_pretrained(path, **local)
    model.to(device).eval()

    def embed(pixels: Tensor) -> Tensor:
        prepared = processor(images=(255 * pixels[0]).round().byte(), return_tensors="pt")["pixel_values"]
        output = model(pixel_values=prepared.to(device))
        return output.image_embeds if is_clip else output.last_hidden_state[:, 0]

    return Network(name, embed, "clip_i" if is_clip else "dino_i" if "dino" in f"{kind} {path.name}" else "similarity")


def intra_scores(pixels: Tensor, network: Network) -> dict[str, float]:
    """Intra-LPIPS and Intra-Style-L of a panorama (SyncDiffusion, arXiv 2306.05178, section 5), (1, 3, H, W) in [0, 1].

    Means over all pairs of squares that lie side by side: of the network's distance, and of squared differences of the
    maps' Gram matrices, summed over maps (Gatys et al., CVPR 2016, equations 3 to 5). The paper takes VGG16 for the one
    and VGG19 for the other. Nothing is returned for pictures less than twice as long as wide.
    """
    along, side = (3 if pixels.shape[3] > pixels.shape[2] else 2), min(pixels.shape[2:])
    windows = pixels.split(side, along)[: pixels.shape[along] // side]
    if len(windows) < 2 or network.maps is None or network.distance is None:
        return {}
    rows = [values.flatten(2) for values in network.maps(torch.cat(windows))]
    grams = [values @ values.transpose(1, 2) / values[0].numel() for values in rows]
    one, other = torch.tensor(list(combinations(range(len(windows)), 2))).T
    style = sum(float((gram[one] - gram[other]).square().mean()) for gram in grams)
    distances = torch.cat([network.distance(*pair) for pair in combinations(windows, 2)])
    return {f"intra_{network.distance_name}": float(distances.mean()), "intra_style": style}
