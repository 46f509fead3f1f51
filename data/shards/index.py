"""Where each sample of a shard lies in its tar file: found once, so that samples can then be read in any order.

Tar headers are read with the standard library and members grouped into samples by webdataset's own rule (everything
before the first dot of the base name is the key), so that a shard means here what it means to webdataset. There are two
exceptions: members of a sample need not lie side by side, and names of pictures may have dots of their own
(`_split_dotted`). Nothing is decoded.
"""

import errno
import json
import re
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from webdataset.tariterators import base_plus_ext

from data.shards.manifest import IMAGE_MEMBERS
from seecoder.weights.atomic import write_text

SUFFIX = ".index.json"
FORMAT, VERSION = "seecoder.index", 1
MISSING, EMPTY, NO_TAR, UNREADABLE = "missing shard", "empty shard", "not a tar file", "unreadable shard"
TRUNCATED, DAMAGED, SHORT, NO_PICTURE = "truncated shard", "damaged shard", "short shard", "no picture"
DOUBLED = "name that stands several times (each is a sample)"

_BLOCK = tarfile.BLOCKSIZE
_NOTES = re.compile(r"__[^/]*__/")  # folders that webdataset keeps for its own notes
_TICK = 0.02  # seconds; file systems round times so much that a change within them may not show
_PASSING = (errno.ESTALE, errno.EIO, errno.EAGAIN, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET)  # of storage

Kinds = tuple[tuple[str, ...], ...]  # of the members that a sample needs: one of the first, one of the second, ...
Members = dict[str, tuple[int, int]]  # (offset, size) by extension
Sample = tuple[str, Members]  # with its key
Result = TypeVar("Result")


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard in the order of the tar file.

    Attributes:
        samples: Key and members of each. A member that cannot be read, such as a link to a file that is not in the
            shard, is there under a kind that says so ("jpg (link)"), with size 0.
        fault: Why the shard ends before its time, one of the constants above; "" for a whole one.
        passed: Members that belong to no sample, or to several of one name, by what is odd about them.
    """

    samples: list[Sample]
    fault: str = ""
    passed: Counter[str] = field(default_factory=Counter, compare=False)


def needed_kinds(image_member: str | None, *beside: str | None) -> Kinds:
    """Kinds of the picture, and of the members of these names beside it, such as `mask` of `000.mask.png`."""
    images = IMAGE_MEMBERS if image_member is None else (image_member.lower(),)
    return (images, *(tuple(f"{name}.{kind}" for kind in IMAGE_MEMBERS) for name in beside if name))


def retried(action: Callable[[], Result], repair: Callable[[], None] = lambda: None) -> Result:
    """Read from storage, and a few times again, after a `repair`, if an error may pass: a stale handle of NFS, say.

    Raises:
        OSError: The error stays, or is of another kind.
    """
    for pause in (0.05, 0.2, 0.8):  # seconds
        try:
            return action()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
        time.sleep(pause)
        repair()
    return action()


def read_headers(path: Path, required: Collection[str] = ()) -> ShardIndex:
    """Read a tar file's headers, and those of tar files that were joined to it (`cat`).

    A process remembers what it read last, and does not read it again while the file stays as it is.

    A cut or damaged file gives the samples before the fault. The sample at the fault counts only if it is complete:
    it has the `required` members or, where nothing is required, those of the shard's first sample. (A file cut
    between two members ends without any error, and its last picture would otherwise be taken without its JSON.)

    Args:
        path: Local file.
        required: Kinds of member without which a sample is incomplete.
    """
    try:
        status = path.stat()
        read = _read_headers if time.time() - status.st_mtime > _TICK else _read_headers.__wrapped__
        return retried(lambda: read(path, frozenset(required), status.st_size, status.st_mtime_ns))
    except OSError as error:
        return ShardIndex([], MISSING if isinstance(error, FileNotFoundError) else UNREADABLE)


@lru_cache(32)
def _read_headers(path: Path, required: frozenset[str], size: int, _changed: int) -> ShardIndex:
    if size == 0:
        return ShardIndex([], EMPTY)
    samples, last = list[Sample](), dict[str, Members]()
    fault, passed = "", Counter[str]()
    try:
        with path.open("rb") as file:
            for name, offset, length in _members(file):
                if offset + length > size:
                    fault = TRUNCATED
                    break
                key, extension = base_plus_ext(name)
                is_hidden = name.rpartition("/")[2].startswith(".")  # macOS lays `._1.jpg` beside `1.jpg`
                if is_hidden or key is None or extension is None:
                    passed["hidden file" if is_hidden else "no extension"] += 1
                elif not _NOTES.match(name):
                    _add(samples, last, key, extension, (offset, length))
    except OSError:
        raise
    except EOFError as end:
        fault = str(end)
    except Exception:  # tarfile answers hostile headers with nearly any: Index-, Recursion-, Memory-, OverflowError
        fault = DAMAGED if samples else NO_TAR
    samples = _split_dotted(samples)
    if fault and samples and not _is_complete(samples, required):
        del samples[-1]
    if len(keys := Counter(key for key, _ in samples)) < len(samples):
        passed[DOUBLED] = sum(len(members) for key, members in samples if keys[key] > 1)
    return ShardIndex(samples, fault, passed)


def _is_complete(samples: list[Sample], required: Collection[str]) -> bool:
    """Judge the last sample before a fault: by what is required or, failing that, by the first sample."""
    if not required and len(samples) == 1:
        return False
    return set(required or samples[0][1]) <= set(samples[-1][1])


def _members(file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size of the members; the name of one that cannot be read says so, such as a link.

    Raises:
        EOFError: The file does not end as a tar file does.
    """
    start = 0
    while start >= 0:
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            before = -1
            while (member := tar.next()) is not None:
                if member.offset <= before or member.size < 0:  # a negative size would lead back to where we have been
                    raise tarfile.ReadError("headers out of order")
                before = member.offset
                tar.members.clear()  # type: ignore[attr-defined]  # else every header of a large shard stays in memory
                if member.isreg() and not member.issparse():
                    yield member.name, member.offset_data, member.size
                elif not member.isdir():
                    yield f"{member.name} ({'link' if member.linkname else 'special file'})", member.offset, 0
            start = _next_archive(file, tar.offset)


def _next_archive(file: BinaryIO, end: int) -> int:
    """Where a tar file begins that was joined to one that ends at `end`, or rubbish; -1 if there are only zeros."""
    file.seek(end)
    block = file.read(_BLOCK)
    if len(block) < _BLOCK or any(block):  # a file that merely stops, or goes on with rubbish
        raise EOFError(TRUNCATED if len(block) < _BLOCK else DAMAGED)
    while chunk := file.read(1 << 16):
        if rest := chunk.lstrip(b"\0"):
            return (file.tell() - len(rest)) // _BLOCK * _BLOCK
    return -1


def _add(samples: list[Sample], last: dict[str, Members], key: str, extension: str, place: tuple[int, int]) -> None:
    """Add a member to the last sample of its key, wherever that is: tools write all pictures, then all JSON, too."""
    if key not in last or extension.lower() in last[key]:
        last[key] = {}
        samples.append((key, last[key]))
    last[key][extension.lower()] = place


def _split_dotted(samples: list[Sample]) -> list[Sample]:
    """Give pictures whose names hold dots back to samples of their own.

    webdataset ends the key at the first dot and takes `seg.png` of `0001.seg.png` for a kind of member. So do we, as
    long as the sample has a plain picture (`0001.jpg`), or if several samples share that kind and it begins with a
    letter. Else the dots belong to the name: `photo_v1.5_0001.jpg` and `photo_v1.5_0002.jpg` are two samples, and so
    are `a.jpg.jpg` and `b.jpg.jpg`.
    """
    uses = Counter(kind for _, members in samples for kind in members)
    parts, last = list[Sample](), dict[str, Members]()
    for key, members in samples:
        dotted = [kind for kind in members if kind.rpartition(".")[1] and kind.rpartition(".")[2] in IMAGE_MEMBERS]
        is_plain = not dotted or not members.keys().isdisjoint(IMAGE_MEMBERS)
        named = [kind for kind in dotted if kind[0].isalpha() and kind.rpartition(".")[0] not in IMAGE_MEMBERS]
        if is_plain or any(uses[kind] > 1 for kind in named):
            parts.append((key, members))
            continue
        for kind, place in members.items():
            name, _, extension = kind.rpartition(".")
            _add(parts, last, f"{key}.{name}" if name else key, extension, place)
    return sorted(parts, key=lambda sample: min(sample[1].values()))  # as they lie in the file


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
    rows = ",\n".join(json.dumps(sample, separators=(",", ":")) for sample in index.samples)
    head = json.dumps(content)[:-1]
    write_text(index_path(shard), f'{head}, "samples": [\n{rows}\n]}}\n')


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
    if kept is None or sha256 not in (None, kept[1]["sha256"]) or not shard.is_file():
        return read_headers(shard, required)
    return kept[0] if shard.stat().st_size == kept[1]["bytes"] else read_headers(shard, required)
