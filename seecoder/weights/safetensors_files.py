"""Safetensors files: read after what can run code was refused, written whole, the same bytes for the same tensors.

Pickles (`.bin`, `.pt`, `.pth`, `.ckpt`) can run any code when they are read. `read_safetensors` refuses them and names
the one way out, `seecoder import --allow-pickle`, which goes through `seecoder.weights.pickles`.

Format: https://github.com/huggingface/safetensors#format
"""

import json
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor

from seecoder.weights.atomic import atomic_path

PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
# Zip archives are what torch.save writes since 1.6; before that a bare pickle of protocol 2 to 5, or a tar archive.
_PICKLE_MAGIC = re.compile(rb"PK\x03\x04|\x80[\x02-\x05]")

# Names in the file, in the order in which the reference implementation sorts tensors: widest last here, first in files.
_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
_FOREIGN = {b"GGUF": "a GGUF file", b"<": "a web page", b"{\n": "a JSON file", b'{"': "a JSON file"}  # by first bytes
_ORDER = {dtype: place for place, dtype in enumerate(_DTYPES)}


class WeightsError(RuntimeError):
    """A file of weights that cannot be used, or that does not fit the module it was meant for."""


class TensorInfo(NamedTuple):
    """What the header of a file says about one tensor: the name of its dtype ("F32", "BF16", "I64") and its shape."""

    dtype: str
    shape: tuple[int, ...]


def read_safetensors(
    path: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file.

    Args:
        path: The file. Its suffix is not looked at, except that those of pickles are refused.
        device: Where the tensors go. On the CPU they are mapped from the file, so their pages are read when used.

    Returns:
        Tensors by name, and the metadata.

    Raises:
        FileNotFoundError: If there is no such file.
        WeightsError: If it is a pickle, truncated, damaged or something else altogether.
    """
    with _opened(Path(path), str(device)) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def read_header(path: str | os.PathLike[str]) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Read what a safetensors file says about its tensors, without the tensors.

    Args:
        path: The file, of any name that is not a pickle's.

    Returns:
        Dtypes and shapes by name, and the metadata.

    Raises:
        FileNotFoundError: If there is no such file.
        WeightsError: If it is a pickle, truncated, damaged or something else altogether.
    """
    with _opened(Path(path), "cpu") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        tensors = {name: TensorInfo(part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
        return tensors, dict(file.metadata() or {})


@contextmanager
def _opened(path: Path, device: str) -> Iterator[Any]:
    check_file(path)
    if sign := pickle_sign(path):
        raise WeightsError(
            f"`{path}` is a pickle ({sign}), which can run any code when it is read, so only safetensors are. If you "
            "trust its origin, convert it once with `seecoder import --allow-pickle`."
        )
    try:
        with safetensors.safe_open(path, framework="pt", device=device) as file:
            yield file
    except safetensors.SafetensorError as error:
        with path.open("rb") as damaged:
            first = damaged.read(8)
        if first == b"version ":
            raise WeightsError(f"`{path}` is a Git LFS pointer, not the weights. Run `git lfs pull`.") from None
        if kind := next((kind for sign, kind in _FOREIGN.items() if first.startswith(sign)), None):
            raise WeightsError(f"`{path}` is {kind}, and only safetensors are read. Get the weights as such.") from None
        reason = str(error).removeprefix("Error while deserializing header: ")[:150]
        raise WeightsError(f"`{path}` is truncated, or no safetensors file ({reason}). Get it again.") from None


def check_file(path: Path) -> None:
    """Refuse what is not a regular file.

    Raises:
        FileNotFoundError: If there is nothing under this path.
        WeightsError: If it is a folder, a pipe, a socket or a device.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"`path`={path} does not exist; there is no such file.") from None
    if stat.S_ISDIR(mode):
        raise WeightsError(f"`{path}` is a folder; name the file of weights inside it.")
    if not stat.S_ISREG(mode):
        raise WeightsError(f"`{path}` is not a regular file (a pipe, a socket or a device).")


def pickle_sign(path: Path) -> str:
    """Say by what a file looks like a pickle, which can run code: its name or its first bytes; empty if it does not."""
    with open(path, "rb") as file:
        first = file.read(9)
    if path.suffix.lower() in PICKLE_SUFFIXES:
        return f"its name ends with {path.suffix}"
    is_pickle = _PICKLE_MAGIC.match(first) and first[8:] != b"{"  # the first byte of every safetensors header
    return "its first bytes are those of one" if is_pickle else ""


def metadata_and_names(path: str | os.PathLike[str]) -> tuple[dict[str, str], set[str]]:
    """Metadata and names of the tensors of a safetensors file; nothing for any other path, also one that is not there.

    Args:
        path: Any path.
    """
    if not Path(path).is_file() or Path(path).suffix != ".safetensors":
        return {}, set()
    try:
        tensors, metadata = read_header(path)
    except WeightsError:
        return {}, set()
    return metadata, set(tensors)


def write_safetensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whose bytes depend on nothing but the tensors and the metadata.

    The library's own writer (0.8.0) orders metadata by a random hash and needs all tensors in memory at once; this one
    sorts, and holds one tensor at a time. The layout is otherwise the same, bit for bit. Tensors that share memory are
    written each.

    Args:
        path: Replaced atomically.
        tensors: Dense tensors by name, on any device.
        metadata: Strings by name.

    Raises:
        TypeError: If a name, a tensor or a metadata value is of a kind that the format has no place for.
        FileNotFoundError: If the folder does not exist.
        OSError: If the disk is full; the file under `path` is then as it was.
    """
    _check_writable(tensors, metadata)
    names = sorted(tensors, key=lambda name: (-_ORDER[tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": {key: metadata[key] for key in sorted(metadata)}} if metadata else {}
    end = 0
    for name in names:
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    with atomic_path(path) as partial, open(partial, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in names:
            flat = tensors[name].detach().to("cpu").contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def _check_writable(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    for name, tensor in tensors.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise TypeError(f"{name!r} cannot name a tensor.")
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or tensor.is_meta:
            kind = f"{tensor.layout} on {tensor.device}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"`{name}` is {kind}; only dense tensors with values can be written.")
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"`{name}` is {tensor.dtype}, which safetensors has no name for.")
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata {key!r}={value!r}: names and values must be strings.")
