"""Weights in and out: safetensors only, strictly, and complete or not at all.

A file of weights is read without running anything that it contains, is checked before memory is spent on it, and either
fits a module in every name and shape or changes nothing. What is written is byte for byte a function of the tensors and
the metadata, and carries the configuration that rebuilds the module.

Pickles (`.bin`, `.pt`, `.pth`, `.ckpt`) can run any code when they are read. `read_safetensors` refuses them and names
the one way out, `seecoder import --allow-pickle`, which goes through `read_pickle_allowed`.

Format: https://github.com/huggingface/safetensors#format
"""

import json
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor, nn

import seecoder
from seecoder.weights.atomic import atomic_directory, atomic_path, remove_left_behind
from seecoder.weights.checks import WeightsError, check_file, check_header, check_not_pickle

__all__ = [
    "Metadata",
    "WeightsError",
    "atomic_directory",
    "atomic_path",
    "load_strict",
    "pack_metadata",
    "read_pickle_allowed",
    "read_safetensors",
    "remove_left_behind",
    "unpack_metadata",
    "write_safetensors",
]

FORMAT = "seecoder"
FORMAT_VERSION = 1

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
_ORDER = {dtype: place for place, dtype in enumerate(_DTYPES)}


class Metadata(NamedTuple):
    """What a file says about itself: how to rebuild the module, who wrote it, and anything else, as strings."""

    config: dict[str, Any]
    format_version: int
    seecoder_version: str
    extra: dict[str, str]


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
    path = Path(path)
    check_file(path)
    check_not_pickle(path)
    check_header(path)
    try:
        with safetensors.safe_open(path, framework="pt", device=str(device)) as opened:
            metadata = opened.metadata() or {}
            return {name: opened.get_tensor(name) for name in opened.keys()}, dict(metadata)  # noqa: SIM118 (no dict)
    except safetensors.SafetensorError as error:
        raise WeightsError(f"`{path}` is not a valid safetensors file: {str(error)[:150]}. Get it again") from None


def write_safetensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whose bytes depend on nothing but the tensors and the metadata.

    The library's own writer orders metadata by a random hash and needs all tensors in memory at once; this one sorts,
    and holds one tensor at a time. The layout is otherwise the same, bit for bit. Tensors that share memory are written
    each.

    Args:
        path: Replaced atomically.
        tensors: Dense tensors by name, on any device.
        metadata: Strings by name, for instance from `pack_metadata`.

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


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str, variant: str | None = None) -> None:
    """Load tensors into a module if every name and shape fits; otherwise change nothing.

    Args:
        module: Its parameters keep their dtype and device; those on the meta device are replaced by the tensors.
        tensors: Its state dict, complete.
        source: The file, for the message.
        variant: What the file looks like to the caller, e.g. "the position-aware encoder", for the message.

    Raises:
        WeightsError: Naming how many weights are missing, unexpected or of another shape, and the first three of each.
    """
    expected = module.state_dict()
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    mismatched = [
        f"{name} is {_kind(tensors[name])} where {_kind(wanted)} is needed"
        for name, wanted in expected.items()
        if name in tensors and isinstance(wanted, Tensor) and _kind(tensors[name]) != _kind(wanted)
    ]
    problems = [
        _counted(missing, "weight is missing", "weights are missing"),
        _counted(unexpected, "is unexpected", "are unexpected"),
        _counted(mismatched, "does not fit", "do not fit"),
    ]
    if missing or unexpected or mismatched:
        looks = f" The file looks like {variant}." if variant else ""
        raise WeightsError(
            f"`{source}` does not fit {type(module).__name__}: {'; '.join(filter(None, problems))}.{looks}"
        )
    on_meta = any(isinstance(wanted, Tensor) and wanted.is_meta for wanted in expected.values())
    module.load_state_dict(dict(tensors), strict=True, assign=on_meta)


def pack_metadata(config: Mapping[str, Any], **extra: str) -> dict[str, str]:
    """Metadata for `write_safetensors`: format, versions, the configuration as JSON, and more strings of your own.

    Args:
        config: Keyword arguments that rebuild the module; anything JSON can hold (tuples come back as lists).
        extra: More entries.

    Raises:
        TypeError: If `config` holds what JSON cannot, or an extra entry is no string.
        ValueError: If an extra entry has a name that is taken, or `config` holds NaN or infinity.
    """
    own = {
        "format": "pt",  # what transformers and others look for
        "seecoder.format": FORMAT,
        "seecoder.format_version": str(FORMAT_VERSION),
        "seecoder.version": seecoder.__version__,
        "seecoder.config": json.dumps(dict(config), sort_keys=True, allow_nan=False),
    }
    for name, value in extra.items():
        if name in own:
            raise ValueError(f"`{name}` is taken by the format itself; choose another name")
        if not isinstance(value, str):
            raise TypeError(f"`{name}` is a {type(value).__name__}; metadata are strings")
    return own | extra


def unpack_metadata(metadata: Mapping[str, str], *, source: str) -> Metadata:
    """Read what `pack_metadata` wrote.

    Raises:
        WeightsError: If the file was not written by seecoder, by a newer format than this one, or is damaged.
    """
    if metadata.get("seecoder.format") != FORMAT:
        raise WeightsError(
            f"`{source}` carries no seecoder metadata, so it was written by something else. Files in the released "
            "layout are read by `SeeCoder.from_official` and `seecoder import`"
        )
    try:
        version = int(metadata["seecoder.format_version"])
        config = json.loads(metadata["seecoder.config"])
        writer = metadata["seecoder.version"]
    except (KeyError, ValueError, RecursionError) as error:
        raise WeightsError(f"`{source}` has damaged metadata ({type(error).__name__}: {error})") from None
    if version > FORMAT_VERSION:
        raise WeightsError(
            f"`{source}` has format version {version}, written by seecoder {writer}; this is {seecoder.__version__}, "
            f"which reads up to {FORMAT_VERSION}. Update seecoder"
        )
    if not isinstance(config, dict):
        raise WeightsError(f"`{source}` has damaged metadata (the configuration is a {type(config).__name__})")
    extra = {name: value for name, value in metadata.items() if name != "format" and not name.startswith("seecoder.")}
    return Metadata(config, version, writer, extra)


def read_pickle_allowed(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a pickle, for `seecoder import --allow-pickle` and nothing else.

    Only with torch's restricted unpickler (`weights_only=True`), which builds tensors and plain containers and refuses
    everything else. It keeps a file from running code as far as torch knows how; it is no sandbox.

    Args:
        path: A checkpoint of tensors by name, bare or under `state_dict` or `model`.

    Raises:
        FileNotFoundError: If there is no such file.
        WeightsError: If it needs more than the restricted unpickler gives, or holds anything but tensors.
    """
    path = Path(path)
    check_file(path)
    _refuse_compressed_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # What the unpickler raises on hostile bytes is open-ended; whatever it is, nothing was loaded.
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightsError(
            f"`{path}` cannot be read by torch's restricted unpickler, and nothing less safe is tried: {reason[0]}"
        ) from None
    for _ in range(3):
        inner = next((content[key] for key in ("state_dict", "model") if _is_dict_under(content, key)), None)
        content = content if inner is None else inner
    return _only_tensors(path, content)


def _is_dict_under(content: Any, key: str) -> bool:
    return isinstance(content, dict) and isinstance(content.get(key), dict)


def _only_tensors(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, dict) or not content:
        raise WeightsError(f"`{path}` holds a {type(content).__name__}, not tensors by name")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout is not torch.strided:
            raise WeightsError(
                f"`{path}` holds more than dense tensors: {name!r} is a {type(value).__name__}. "
                "Save its state dict alone and import that"
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise WeightsError(f"`{path}`: {name!r} claims {value.numel():,} elements, more than the file stores")
    return {name: value.detach() for name, value in content.items()}


def _refuse_compressed_archive(path: Path) -> None:
    """torch.save stores without compression; an archive that is compressed was made to unpack to something huge."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise WeightsError(f"`{path}` is a compressed archive, which torch.save does not write")


def _check_writable(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    for name, tensor in tensors.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise TypeError(f"{name!r} cannot name a tensor")
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or tensor.is_meta:
            kind = f"{tensor.layout} on {tensor.device}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"`{name}` is {kind}; only dense tensors with values can be written")
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"`{name}` is {tensor.dtype}, which safetensors has no name for")
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata {key!r}={value!r}: names and values must be strings")


def _kind(tensor: Tensor) -> str:
    """Shape, and what loading must not convert silently: integers to floats and back."""
    group = "" if tensor.is_floating_point() else " complex" if tensor.is_complex() else " integer"
    return f"{tuple(tensor.shape)}{group}"


def _counted(entries: list[str], one: str, many: str) -> str:
    if not entries:
        return ""
    more = ", ..." if len(entries) > 3 else ""
    return f"{len(entries)} {one if len(entries) == 1 else many} ({', '.join(entries[:3])}{more})"
