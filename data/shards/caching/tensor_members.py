"""Tensors as a member of a sample: safetensors bytes, bound to what made them by a digest in the header."""

import json
from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from data.shards.reading.square_image import UnusableSample


def pack_tensors(tensors: Mapping[str, Tensor], form: str, digest: str) -> bytes:
    """Make a member; equal tensors give equal bytes.

    Args:
        tensors: What it holds, on the CPU.
        form: Name and version of the format.
        digest: Of all that the tensors depend on beside the picture.
    """
    return save(dict(tensors), {form: digest})  # one entry: the order of several would be random


def pack_rows(columns: Mapping[str, Tensor], form: str, digest: str) -> list[bytes | None]:
    """Make the members of a batch.

    Args:
        columns: Tensors of N rows.
        form: Name and version of the format.
        digest: Of all that the tensors depend on beside the picture.

    Returns:
        N members; None where a row has a value that is not finite.
    """
    columns = {name: column.cpu().contiguous() for name, column in columns.items()}
    rows = ({name: column[row] for name, column in columns.items()} for row in range(len(next(iter(columns.values())))))
    return [
        pack_tensors(row, form, digest) if all(bool(value.isfinite().all()) for value in row.values()) else None
        for row in rows
    ]


def unpack_tensors(content: bytes, form: str) -> tuple[str, dict[str, Tensor]]:
    """Read a member.

    Returns:
        The digest, and the tensors.

    Raises:
        UnusableSample: It is damaged, or of another format.
    """
    try:
        length = int.from_bytes(content[:8], "little")
        digest = json.loads(content[8 : 8 + length])["__metadata__"][form]
        return str(digest), load(content)
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        kind = form.split(".")[1]
        raise UnusableSample(f"bad {kind}", f"its {kind} do not parse: {error!r:.200}") from error


def get_tensor(tensors: Mapping[str, Tensor], name: str, dtype: object, shape: tuple[int, ...], kind: str) -> Tensor:
    """Take one tensor of a member.

    Raises:
        UnusableSample: It is not there, or of another dtype or shape.
    """
    tensor = tensors.get(name)
    if tensor is None or tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise UnusableSample(f"bad {kind}", f"its {kind} lack `{name}` {shape} {str(dtype).removeprefix('torch.')}")
    return tensor
