"""What a file must pass before its weights are read: is it there, is it no pickle, is its header sound."""

import json
import re
import stat
import struct
from pathlib import Path

# Real files stay far below (616 tensors make 70 KB); a parser given 100 MB of nested JSON would take gigabytes.
_MAX_HEADER_BYTES = 25_000_000
_PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
# Zip archives are what torch.save writes since 1.6; before that a bare pickle of protocol 2 to 5, or a tar archive.
_PICKLE_MAGIC = re.compile(rb"PK\x03\x04|\x80[\x02-\x05]")


class WeightsError(RuntimeError):
    """A file of weights that cannot be used, or that does not fit the module it was meant for."""

    __module__ = "seecoder.weights"  # where it belongs; it is defined here only because both files raise it


def check_file(path: Path) -> None:
    """Refuse what is not a regular file.

    Raises:
        FileNotFoundError: If there is nothing under this path.
        WeightsError: If it is a folder, a pipe, a socket or a device.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"`path`={path}: there is no such file") from None
    if stat.S_ISDIR(mode):
        raise WeightsError(f"`{path}` is a folder; name the file of weights inside it")
    if not stat.S_ISREG(mode):
        raise WeightsError(f"`{path}` is not a regular file (a pipe, a socket or a device)")


def check_not_pickle(path: Path) -> None:
    """Refuse what can run code, by its name or by its first bytes.

    Raises:
        WeightsError: Naming the way out.
    """
    with open(path, "rb") as file:
        first = file.read(9)
    looks = ""
    if path.suffix.lower() in _PICKLE_SUFFIXES:
        looks = f"its name ends with {path.suffix}"
    elif _PICKLE_MAGIC.match(first) and first[8:] != b"{":  # the first byte of every safetensors header
        looks = "its first bytes are those of one"
    if looks:
        raise WeightsError(
            f"`{path}` is a pickle ({looks}), which can run any code when it is read, so only safetensors are. If you "
            "trust its origin, convert it once with `seecoder import --allow-pickle`"
        )


def check_header(path: Path) -> None:
    """Bounds that the safetensors library does not check, and reasons that it does not give.

    Raises:
        WeightsError: If the file is truncated, damaged or no safetensors file.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        first = file.read(8)
        if first.startswith(b"version "):
            raise WeightsError(f"`{path}` is a Git LFS pointer, not the weights. Run `git lfs pull`")
        if size < 10:
            raise WeightsError(f"`{path}` has {size} bytes: it is empty or truncated. Get it again")
        (length,) = struct.unpack("<Q", first)
        if length > _MAX_HEADER_BYTES:
            raise WeightsError(f"`{path}` is not a safetensors file: its first bytes are {first!r}")
        if 8 + length > size:
            raise WeightsError(f"`{path}` is truncated: its header alone has {length:,} bytes, the file {size:,}")
        encoded = file.read(length)
    try:
        entries = {name: entry for name, entry in json.loads(encoded).items() if name != "__metadata__"}
        needed = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise WeightsError(f"`{path}` has a damaged header ({type(error).__name__}). Get it again") from None
    if needed > size:
        raise WeightsError(f"`{path}` is truncated: {size:,} of {needed:,} bytes are there. Get it again")
