"""Where weights come from when a training begins, and what a checkpoint says for `seecoder export`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from data.world.conditioner import WorldConditioner
from seecoder.base_model.loading import load_model, load_part
from seecoder.checks import optional, whole
from seecoder.encoder.model import SeeCoder
from seecoder.encoder.official import is_official_file
from seecoder.export.trained_part import BACKBONE_PREFIX, read_trained
from seecoder.weights.strict_loading import load_strict
from train.stages.stage import Stage, read_stage_weights

ENCODER_SIZE = optional(whole(32))  # pixels: smaller pictures have nothing for the last of a backbone's four levels
_ADDED = ("position_encoding", "pooled_projection.")  # in the names of what a plain encoder lacks


def load_trained(encoder: SeeCoder, source: str) -> None:
    """Start a new stage from weights, with a fresh optimizer.

    A plain encoder's weights may start a position-aware one: without `position_gain` its positional encoding begins
    with a last layer of zeros, so that the first step sees exactly the plain encoder. Likewise one without a pooled
    vector may start one for SDXL's family, whose projection keeps its initial weights.

    Args:
        encoder: Whose trained weights are replaced. The backbone is, too, if the source holds one.
        source: A run's folder or checkpoint (averages are preferred), a saved encoder's folder, or a released file.

    Raises:
        FileNotFoundError: There is no such file.
        WeightsError: Weights are missing, unexpected or of another shape.
    """
    tensors = _read(encoder, source)
    own = encoder.state_dict()
    absent = sorted(set(own) - set(tensors))
    allowed = [key for key in absent if any(part in key for part in (*_ADDED, BACKBONE_PREFIX))]
    if not any(key.startswith(BACKBONE_PREFIX) for key in tensors) or len(allowed) == len(absent):
        tensors = {**{key: own[key] for key in allowed}, **tensors}
    load_strict(encoder, tensors, source=source)


def _read(encoder: SeeCoder, source: str) -> dict[str, Tensor]:
    path = Path(source)
    if (path / "config.json").is_file():
        saved = SeeCoder.from_pretrained(path)
        return dict(saved.state_dict())
    if is_official_file(path):
        config = {key: value for key, value in encoder.config.items() if not key.startswith("_")}
        config.pop("position_aware")
        return dict(SeeCoder.from_official(path, **config).state_dict())
    trained = read_trained(path)
    return {**trained.trainable, **(trained.ema or {})}


def describe_encoder(
    encoder: SeeCoder, averages: dict[str, Tensor] | None, backbone_source: str, backbone_sha256: str
) -> dict[str, Any]:
    """What `seecoder.export.trained_part.read_trained` looks for in a checkpoint: plain values and tensors.

    Args:
        encoder: The trained encoder.
        averages: Running averages by the encoder's keys.
        backbone_source: Where its frozen backbone came from.
        backbone_sha256: `tensors_sha256` of the backbone in float32.
    """
    state = encoder.state_dict()
    config = {key: value for key, value in encoder.config.items() if not key.startswith("_")}
    return {
        "encoder_config": {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()},
        "encoder_trainable": {key: value for key, value in state.items() if not key.startswith(BACKBONE_PREFIX)},
        "ema": averages or {},
        "backbone_source": backbone_source,
        "backbone_sha256": backbone_sha256,
    }


def seeded_encoder(config: dict[str, Any], seed: int, position_gain: float = 0.0) -> SeeCoder:
    """Build an encoder whose initial weights follow from the seed alone.

    Args:
        config: Arguments of `SeeCoder`.
        seed: Of the weights.
        position_gain: Xavier gain of the positional encoding's last weight; 0 leaves it at zero, as published.

    Raises:
        ValueError: An argument is not one of `SeeCoder`, or a gain has no positions to act on.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            encoder = SeeCoder(**config)
        except TypeError as error:
            raise ValueError(f"`encoder`: {error}") from error
        if position_gain:
            positions: Any = encoder.query_transformer.position_encoding
            if position_gain < 0 or positions is None:
                raise ValueError(
                    f"`position_gain`={position_gain} must not be negative, and needs position_aware=true in `encoder`."
                )
            torch.nn.init.xavier_normal_(positions.mlp[-1].weight, position_gain)
    return encoder


_EMBEDDING = [f"unet.add_embedding.linear_{layer}.{kind}" for layer in (1, 2) for kind in ("weight", "bias")]
ADDED_BY_SDXL = (*_EMBEDDING, "conditioner.pooled_projection.weight")


def load_widened(stage: Stage, source: Path) -> None:
    """Start from weights of a base that may read fewer channels and have other conditioners.

    Input channels that the source lacks begin at zero, as in the published inpainting models, and so do the layout
    token's lower octaves and what an SDXL-like base adds to the time: the first step sees exactly the source's network.
    Conditioners that the source lacks keep their initial weights, and a scene's that the stage lacks is left out.
    What is frozen in the stage stays as it is. Everything else has to be there and to fit.

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
    tensors |= {name: value for name, value in own.items() if stage.is_frozen(name)}
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
