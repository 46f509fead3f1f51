"""What a callback may change of a running call, in the ways that diffusers' guides do."""

from collections.abc import Mapping
from typing import Any

import torch

from seecoder.call_rules import CALLBACK_TENSORS


def changed_tensors(
    before: Mapping[str, torch.Tensor], shown: Mapping[str, Any], returned: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Give the tensors that a run goes on with after a callback.

    Args:
        before: What the run had: `latents`, `context` and `negative_context`.
        shown: The dictionary that the callback was given, and may have written to.
        returned: What it returned, which counts before `shown`.

    Raises:
        ValueError: Something else than these tensors, or a tensor of another shape.
    """
    if not isinstance(returned, Mapping):
        raise ValueError(
            f"`callback_on_step_end` returned a {type(returned).__name__}; it must return a dictionary, or None."
        )
    changed = {**shown, **returned}
    for name, value in changed.items():
        if name not in before:
            raise ValueError(
                f"`callback_on_step_end` gave `{name}`, which nothing reads; it may change "
                f"{', '.join(CALLBACK_TENSORS)}."
            )
        if not isinstance(value, torch.Tensor) or value.shape != before[name].shape:
            found = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(
                f"`callback_on_step_end` gave `{name}`={found}; it must be a tensor of shape "
                f"{tuple(before[name].shape)}."
            )
    return {name: changed.get(name, value).to(value) for name, value in before.items()}
