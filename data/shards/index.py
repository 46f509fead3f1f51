"""Where each sample of a shard lies in its tar file: found once, so that samples can then be read in any order.

Tar headers are read with the standard library and members grouped into samples by webdataset's own rule (everything
before the first dot of the base name is the key), so that a shard means here what it means to webdataset. Nothing is
decoded.
"""

import json
import os
import re
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from webdataset.tariterators import base_plus_ext

from seecoder.weights.atomic import atomic_path

SUFFIX = ".index.json"
FORMAT, VERSION = "seecoder.index", 1
MISSING, EMPTY, NO_TAR = "missing shard", "empty shard", "not a tar file"
TRUNCATED, DAMAGED, SHORT = "truncated shard", "damaged shard", "short shard"

_BLOCK = tarfile.BLOCKSIZE
_NOTES = re.compile(r"__[^/]*__/")  # folders that webdataset keeps for its own notes

Sample = tuple[str, dict[str, tuple[int, int]]]  # key, and (offset, size) of each member by its extension


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard in the order of the tar file.

    Attributes:
        samples: Key and members of each.
        fault: Why the shard ends before its time, one of the constants above; "" for a whole one.
    """

    samples: list[Sample]
    fault: str = ""


def read_headers(path: Path, required: Collection[str] = ()) -> ShardIndex:
    """Read a tar file's headers.

    A cut or damaged file gives the samples before the fault. The sample at the fault counts only if it is complete:
    it has the `required` members or, where nothing is required, those of the shard's first sample. (A file cut
    between two members ends without any error, and its last picture would otherwise be taken without its JSON.)

    Args:
        path: Local file.
        required: Kinds of member without which a sample is incomplete.
    """
    try:
        size = path.stat().st_size
    except OSError:
        return ShardIndex([], MISSING)
    if size == 0:
        return ShardIndex([], EMPTY)
    samples: list[Sample] = []
    fault = ""
    try:
        with tarfile.open(path, "r:") as tar:
            for name, offset, length in _members(tar):
                if offset + length > size:
                    fault = TRUNCATED
                    break
                _add(samples, name, offset, length)
            fault = fault or _ending(tar, path, size)
    except Exception:  # tarfile answers hostile headers with nearly any: Index-, Recursion-, Memory-, OverflowError
        fault = DAMAGED if samples else NO_TAR
    if fault and samples and not _is_complete(samples, required):
        del samples[-1]
    return ShardIndex(samples, fault)


def _is_complete(samples: list[Sample], required: Collection[str]) -> bool:
    """Judge the last sample before a fault: by what is required or, failing that, by the first sample."""
    if not required and len(samples) == 1:
        return False
    return set(required or samples[0][1]) <= set(samples[-1][1])


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size of the regular members; links, devices and sparse files are passed over."""
    before = -1
    while (member := tar.next()) is not None:
        if member.offset <= before or member.size < 0:  # a negative size would lead back to where we have been
            raise tarfile.ReadError("headers out of order")
        before = member.offset
        tar.members.clear()  # type: ignore[attr-defined]  # else every header of a large shard stays in memory
        if member.isreg() and not member.issparse():
            yield member.name, member.offset_data, member.size


def _ending(tar: tarfile.TarFile, path: Path, size: int) -> str:
    """Tell a proper end (a block of zeros) from a file that merely stops or goes on with rubbish."""
    with path.open("rb") as file:
        file.seek(tar.offset)
        block = file.read(_BLOCK)
    if len(block) < _BLOCK:
        return TRUNCATED
    return DAMAGED if any(block) else ""


def _add(samples: list[Sample], name: str, offset: int, length: int) -> None:
    key, extension = base_plus_ext(name)
    if key is None or extension is None or _NOTES.match(name):
        return
    if not samples or samples[-1][0] != key or extension.lower() in samples[-1][1]:
        samples.append((key, {}))
    samples[-1][1][extension.lower()] = (offset, length)


def index_path(shard: Path) -> Path:
    """`00000.tar` -> `00000.index.json` beside it."""
    return shard.with_name(shard.name.removesuffix(".tar") + SUFFIX)


def write_index(shard: Path, index: ShardIndex, sha256: str, notes: dict[str, Any] | None = None) -> None:
    """Keep an index beside its shard, bound to the shard's sha256.

    Args:
        shard: Path of the tar file.
        index: Its index, without a fault.
        sha256: Digest of the tar file.
        notes: More to keep, for whoever wrote the shard.
    """
    size = shard.stat().st_size if index.samples else 0
    content = {"format": FORMAT, "version": VERSION, "sha256": sha256, "bytes": size, "notes": notes or {}}
    with atomic_path(index_path(shard)) as partial:
        rows = ",\n".join(json.dumps(sample, separators=(",", ":")) for sample in index.samples)
        head = json.dumps(content)[:-1]
        partial.write_text(f'{head}, "samples": [\n{rows}\n]}}\n', encoding="utf-8")


def read_index(shard: Path) -> tuple[ShardIndex, dict[str, Any]] | None:
    """Read the index beside a shard.

    Returns:
        The index, and the rest of the file ("sha256", "bytes", "notes"); None where there is no usable one.
    """
    try:
        content = json.loads(index_path(shard).read_bytes())
        if (content["format"], content["version"]) != (FORMAT, VERSION):
            return None
        rest = {"sha256": str(content["sha256"]), "bytes": content["bytes"], "notes": dict(content["notes"])}
        samples: list[Sample] = []
        for key, members in content["samples"]:
            if not all(_lies_within(rest["bytes"], offset, size) for offset, size in members.values()):
                return None
            samples.append((str(key), {str(name): (offset, size) for name, (offset, size) in members.items()}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return ShardIndex(samples), rest


def _lies_within(size: int, offset: int, length: int) -> bool:
    """Whether these are a place in a file of `size` bytes; JSON may hold anything, from infinity to lists."""
    return {type(size), type(offset), type(length)} == {int} and min(offset, length) >= 0 and offset + length <= size


def load(shard: Path, required: Collection[str] = (), sha256: str | None = None) -> ShardIndex:
    """Index a shard: from the file beside it if that belongs to it, else by reading the headers.

    With the file, a damaged header inside the shard costs nothing. A shard whose size has changed is read afresh.

    Args:
        shard: Local path of the tar file.
        required: Kinds of member without which a sample is incomplete.
        sha256: What the manifest says; an index that was made for another file is not used.
    """
    kept = read_index(shard)
    if kept is not None and (sha256 is None or kept[1]["sha256"] == sha256):
        try:
            if os.stat(shard).st_size == kept[1]["bytes"]:
                return kept[0]
        except OSError:
            return ShardIndex([], MISSING)
    return read_headers(shard, required)
