"""Networks that measures look through, each from a path on this machine; nothing is ever downloaded.

* transformers' vision models in a folder: CLIP gives CLIP-I, DINO gives DINO-I;
* backbones in a folder, such as the world's.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from seecoder.weights.safetensors_files import WeightsError

_WORLD_SIDE = 64  # pixels that networks of the world were trained at
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
    """Make a network of what gives its maps on a device.

    The feature of a picture, brought to a square of `side` pixels, is the mean of the coarsest map. The distance has
    the form of LPIPS without learned weights (Zhang et al., CVPR 2018, section 3), and is called map_distance: squared
    differences of features of unit length, averaged over places, summed over maps.
    """

    def maps(pixels: Tensor) -> list[Tensor]:
        return module(pixels.to(device))

    def embed(pixels: Tensor) -> Tensor:
        square = interpolate(pixels, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        return maps(square)[-1].mean((2, 3))

    def distance(first: Tensor, second: Tensor) -> Tensor:
        pairs = [(normalize(one), normalize(other)) for one, other in zip(maps(first), maps(second), strict=True)]
        return torch.stack([(one - other).square().sum(1).mean((1, 2)) for one, other in pairs]).sum(0)

    return Network(name, embed, "similarity", maps, distance, "map_distance")


def open_network(path: Path, device: str | torch.device = "cpu") -> Network:
    """Open one of the networks in this module's header.

    Raises:
        FileNotFoundError: The path is of no such network.
        WeightsError: Its weights do not fit.
    """
    name = os.path.relpath(path)
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    if "model_type" in config:
        return _from_transformers(name, path, config["model_type"], device)
    if "backbone" not in config or "_class_name" in config:
        raise FileNotFoundError(
            f"`network`={path} has no network; give the folder of a backbone, or of a vision model of transformers "
            "(CLIP, DINO)."
        )
    from seecoder.encoder.backbones.pretrained_weights import load_pretrained
    from seecoder.encoder.backbones.timm_backbones import build_backbone

    backbone = build_backbone(config["backbone"], config.get("backbone_args"))
    load_pretrained(backbone, path, name=name)
    return map_network(name, backbone.to(device).eval(), _WORLD_SIDE, device)


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
