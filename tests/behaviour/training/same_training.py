"""Whether two checkpoints hold the same training."""

from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

KEPT = ("state_dict", "optimizer_states", "ema", "guard", "global_step", "seecoder")


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Every tensor and plain value of a checkpoint by its path."""
    if isinstance(value, dict):
        return {name: leaf for key, inner in value.items() for name, leaf in flat(inner, f"{prefix}/{key}").items()}
    if isinstance(value, list | tuple):
        return {name: leaf for key, inner in enumerate(value) for name, leaf in flat(inner, f"{prefix}/{key}").items()}
    if is_traceable_wrapper_subclass(value):  # torchao's state of an optimizer
        return flat({name: getattr(value, name) for name in value.__tensor_flatten__()[0]}, prefix)
    return {prefix: value}


def assert_equal(first: dict, second: dict) -> None:
    """Weights, moments, averages, guard: everything but Lightning's counts of batches, which begin anew."""
    first, second = (flat({key: checkpoint[key] for key in KEPT}) for checkpoint in (first, second))
    first.pop("/seecoder/backbone_source"), second.pop("/seecoder/backbone_source")
    assert first.keys() == second.keys()
    for name, value in first.items():
        same = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert same, name
