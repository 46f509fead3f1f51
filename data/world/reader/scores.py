"""What the reader's answers come to: means over pictures, and those of one picture for `seecoder eval --world`."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.world.reader.readings import Reading, agreement, read
from data.world.scenes import ATTRIBUTES

_COUNTED = ("objects", "specks", "horizons")


def rates(readings: Sequence[Reading], scenes: Any) -> dict[str, float]:
    """Share of pictures that agree with their scenes, and means of what is counted.

    Args:
        readings: N readings.
        scenes: `Scenes`, or what else has its attributes, (N,) each; None where nothing is known of them.

    Returns:
        "count" (exactly one object), the four attributes and "all" of these at once (with scenes), all in [0, 1]; mean
        "objects", "specks" and "horizons" a picture.
    """
    counts = {name: [getattr(reading, f"num_{name}") for reading in readings] for name in _COUNTED}
    counted = {"count": float(np.mean(np.equal(counts["objects"], 1)))}
    counted |= {name: float(np.mean(numbers)) for name, numbers in counts.items()}
    if scenes is None:
        return counted
    right = agreement(list(readings), {name: getattr(scenes, name) for name in ATTRIBUTES})
    return {name: float(values.mean()) for name, values in right.items()} | counted


def score(pixels: Tensor, paths: Sequence[Path]) -> dict[str, float]:
    """The `rates` of a picture, (3, H, W) in [0, 1].

    Args:
        pixels: The picture.
        paths: Of the picture, and of what it was made from. The first that has JSON of the same name beside it, as
            shards of the world have it, says what the scene is.
    """
    beside = [path.with_suffix(".json") for path in paths if path.with_suffix(".json").is_file()]
    try:
        named = dict(json.loads(beside[0].read_text())) if beside else {}
    except (ValueError, TypeError, RecursionError):  # something else's
        named = {}
    if any(named.get(name) not in names for name, names in ATTRIBUTES.items()):
        return rates(read([pixels]), None)
    truth = {name: torch.tensor([names.index(named[name])]) for name, names in ATTRIBUTES.items()}
    return rates(read([pixels]), SimpleNamespace(**truth))
