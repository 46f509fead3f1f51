"""Contexts as values: combine several pictures into one, scale, keep on disk.

A context is what the encoder makes of a picture, (1, T, D) tokens that take the place of a prompt's embedding. Token i
comes from the learned query i whatever the picture, so contexts of different pictures can be averaged slot by slot.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from seecoder.weights.safetensors_files import WeightsError, metadata_and_names, read_safetensors, write_safetensors

COMBINATIONS = ("average", "concatenate")
_FORMAT = "seecoder.context"


@dataclass(frozen=True)
class ImageSet:
    """Several pictures that together make ONE context.

    Attributes:
        images: The pictures, each anything that `seecoder.load_image` takes.
        weights: One number >= 0 a picture; they are divided by their sum. None counts all pictures alike.
        combine: "average" takes the weighted mean token by token (the length of the context stays the same);
            "concatenate" puts the tokens side by side, so that attention chooses among the pictures at every place.
        masks: What counts of each picture: anything that `seecoder.images.masks.load_mask` takes, or None for all of
            it. None counts all of every picture.
    """

    images: Sequence[Any]
    weights: Sequence[float] | None = None
    combine: Literal["average", "concatenate"] = "average"
    masks: Sequence[Any] | None = None


@dataclass(frozen=True)
class SavedContext:
    """A context read back from disk.

    Attributes:
        context: (N, T, D), one row a context.
        pooled: (N, P) pooled vectors for SDXL, or None.
        metadata: The strings kept in the file's header.
    """

    context: torch.Tensor
    pooled: torch.Tensor | None
    metadata: dict[str, str]


def combine_contexts(
    contexts: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    combine: Literal["average", "concatenate"] = "average",
) -> torch.Tensor:
    """Make one context of several.

    Args:
        contexts: Tensors of one shape, (1, T, D) tokens or (1, P) pooled vectors.
        weights: One number >= 0 a context, divided by their sum; None counts all alike.
        combine: "average" takes the weighted mean token by token; "concatenate" puts the tokens side by side, and takes
            no weights, since attention does the weighing there.

    Returns:
        (1, T, D) for "average", (1, K * T, D) for K concatenated contexts, in the dtype of the first.

    Raises:
        ValueError: No context, unlike shapes, or weights that cannot be used.
    """
    if not contexts:
        raise ValueError("`contexts` is empty; give at least one.")
    shapes = {tuple(context.shape) for context in contexts}
    if len(shapes) > 1:
        raise ValueError(f"`contexts` have different shapes {sorted(shapes)}; encode all pictures with one encoder.")
    if combine not in COMBINATIONS:
        raise ValueError(f"`combine`={combine!r} is unknown; use one of {', '.join(COMBINATIONS)}.")
    if combine == "concatenate":
        if weights is not None:
            raise ValueError('`weights` have no effect with combine="concatenate"; leave them out or use "average".')
        return torch.cat(list(contexts), dim=1)
    shares = normalise_weights(weights, len(contexts))
    # In float32: a mean of half-precision tokens would lose a bit for every picture added.
    total = sum(share * context.float() for share, context in zip(shares, contexts, strict=True))
    return torch.as_tensor(total).to(contexts[0].dtype)


def normalise_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    """Turn picture weights into shares that sum to one.

    Args:
        weights: `count` numbers >= 0, not all zero; None for equal shares.
        count: Number of pictures.

    Returns:
        `count` shares in [0, 1].

    Raises:
        ValueError: Wrong count, a negative or non-finite weight, or a sum of zero.
    """
    if weights is None:
        return [1.0 / count] * count
    numbers = [float(weight) for weight in weights]
    if len(numbers) != count:
        raise ValueError(f"`weights` has {len(numbers)} entries for {count} pictures; give one number a picture.")
    if not all(math.isfinite(number) and number >= 0 for number in numbers) or sum(numbers) == 0:
        raise ValueError(f"`weights`={numbers} must be finite numbers >= 0 with a sum above zero.")
    return [number / sum(numbers) for number in numbers]


def save_context(
    path: str | Path,
    context: torch.Tensor,
    pooled: torch.Tensor | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write contexts to a safetensors file, whole or not at all.

    Args:
        path: The file to write, ending in .safetensors.
        context: (N, T, D) or (T, D).
        pooled: (N, P) pooled vectors, for SDXL.
        metadata: Strings to keep in the header (sources, encoder, ...).

    Raises:
        ValueError: A context of another rank, or a pooled tensor of another length.
    """
    context = context[None] if context.ndim == 2 else context
    if context.ndim != 3:
        raise ValueError(f"`context` has shape {tuple(context.shape)}; expected (N, T, D).")
    tensors = {"context": context.detach().cpu().contiguous()}
    if pooled is not None:
        if pooled.ndim != 2 or len(pooled) != len(context):
            raise ValueError(f"`pooled` has shape {tuple(pooled.shape)}; expected ({len(context)}, P).")
        tensors["pooled"] = pooled.detach().cpu().contiguous()
    write_safetensors(Path(path), tensors, {"format": _FORMAT, "version": "1", **(metadata or {})})


def load_context(path: str | Path) -> SavedContext:
    """Read a file that `save_context` (or `seecoder encode`) wrote.

    Args:
        path: The safetensors file.

    Returns:
        The contexts, in the dtype in which they were saved.

    Raises:
        FileNotFoundError: No such file.
        WeightsError: A safetensors file that holds something else.
    """
    tensors, metadata = read_safetensors(Path(path))
    if metadata.get("format") != _FORMAT or "context" not in tensors:
        raise WeightsError(
            f"`{path}` holds no contexts (format {metadata.get('format')!r}); make one: seecoder encode."
        )
    return SavedContext(tensors["context"], tensors.get("pooled"), metadata)


def is_context_file(path: str | Path) -> bool:
    """Say whether a path is a file of cached contexts, from its header alone.

    Args:
        path: Any path; one that does not exist, or is no safetensors file, is simply not a context file.
    """
    return metadata_and_names(path)[0].get("format") == _FORMAT
