"""Where a second stage's weights come from when it begins from a base, also from one that reads less."""

from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import pad

from data.world.conditioner import WorldConditioner
from seecoder.base_model.loading import load_model, load_part
from seecoder.weights.strict_loading import load_strict
from train.stages.stage import read_stage_weights

_EMBEDDING = [f"unet.add_embedding.linear_{layer}.{kind}" for layer in (1, 2) for kind in ("weight", "bias")]
ADDED_BY_SDXL = (*_EMBEDDING, "conditioner.pooled_projection.weight")


def load_widened(stage: nn.Module, source: Path) -> None:
    """Start from weights of a base that may read fewer channels and have other conditioners.

    Input channels that the source lacks begin at zero, as in the published inpainting models, and so do the layout
    token's lower octaves and what an SDXL-like base adds to the time: the first step sees exactly the source's network.
    Conditioners that the source lacks keep their initial weights, and a scene's that the stage lacks is left out.
    Everything else has to be there and to fit.

    Args:
        stage: Has a `unet`, perhaps a `conditioner`, and `conditioners`.
        source: A base's folder, a run's folder, or a checkpoint.

    Raises:
        FileNotFoundError: There is no such base and no complete checkpoint.
        WeightsError: Names or shapes differ in anything else.
    """
    own, first, layout = stage.state_dict(), "unet.conv_in.weight", "conditioner.layout.0.weight"
    if (source / "unet").is_dir():
        parts = {"unet": load_part(source, "unet")}
        if (source / "conditioner").is_dir():
            parts["conditioner"] = load_model(WorldConditioner, source, "conditioner")
        tensors = {f"{part}.{name}": value for part in parts for name, value in parts[part].state_dict().items()}
    else:
        tensors = read_stage_weights(source)
    if not any(name.startswith("conditioners.") for name in tensors):
        tensors |= {name: value for name, value in own.items() if name.startswith("conditioners.")}
    tensors = {name: value for name, value in tensors.items() if name in own or not name.startswith("conditioner.")}
    if (lacking := own[first].shape[1] - tensors[first].shape[1]) > 0:
        tensors[first] = pad(tensors[first], (0, 0, 0, 0, 0, lacking))
    if layout in own and (lacking := (own[layout].shape[1] - tensors[layout].shape[1]) // 6) > 0:
        waves = tensors[layout].unflatten(1, (2, 3, -1))  # sines and cosines of three numbers, the lowest octave first
        tensors[layout] = pad(waves, (lacking, 0)).flatten(1)
    for name in ADDED_BY_SDXL:
        if name not in tensors and name in own:
            is_last = name.startswith("unet.add_embedding.linear_2.")
            tensors[name] = torch.zeros_like(own[name]) if is_last else own[name]
    load_strict(stage, tensors, source=str(source))
