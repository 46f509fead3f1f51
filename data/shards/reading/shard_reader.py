"""Read single samples out of shards: raw bytes of known members; nothing is decoded or run, keys are never paths."""

import errno
import os
import warnings
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from data.shards import index as shard_index
from data.shards.index import NO_PICTURE, UNREADABLE, ShardIndex, retried
from data.shards.remote.fetcher import UNREACHABLE, Fetcher
from data.shards.shard_set import LocatedShard, ShardSet

INCOMPLETE, OVERSIZED = "incomplete sample", "oversized member"

_MOST_BYTES = 256 << 20  # of one member; far above any picture below the pixel limit
_SHOWN_KEY = 80


class BadSample(Exception):
    """A sample that cannot be read.

    Attributes:
        reason: Category, for counting.
        name: What is at fault: the shard, or the sample.
        detail: One line with the particulars.
    """

    def __init__(self, reason: str, name: str, detail: str) -> None:
        super().__init__(f"{name}: {reason}: {detail}")
        self.reason, self.name, self.detail = reason, name, detail


@dataclass(frozen=True)
class _Open:
    """An open shard."""

    descriptor: int | None  # None: it could not be opened
    index: ShardIndex


class ShardReader:
    """Random access to the samples of a set of shards.

    Picklable and safe to fork: open files stay behind and are opened again on first use.

    Args:
        shards: The shards.
        members: Kinds of member to hand out beside the picture ("json"); all others stay unread.
        fetcher: Brings https shards onto this machine; needed if there are any.
        most_open: Shards kept open, the ones unused for longest are closed first.
    """

    def __init__(
        self, shards: ShardSet, members: Collection[str] = (), fetcher: Fetcher | None = None, most_open: int = 24
    ) -> None:
        self.shards, self.members, self.fetcher, self.most_open = shards, frozenset(members), fetcher, most_open
        self._process = os.getpid()
        self._open: OrderedDict[int, _Open] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        for shard in getattr(self, "_open", {}).values():
            if shard.descriptor is not None:
                os.close(shard.descriptor)
        self._open = OrderedDict()

    def read(self, shard: int, index: int) -> dict[str, bytes]:
        """Read one sample.

        Args:
            shard: Number of the shard in the set.
            index: Number of the sample in the shard.

        Returns:
            Bytes of its picture, first, under the extension of its kind, and of the wanted `members` that it has.

        Raises:
            BadSample: The shard or the sample is missing, cut off, incomplete or too large.
        """
        try:
            return retried(lambda: self._read(shard, index), self.close)  # a stale file has to be opened again
        except OSError as error:
            name = f"{self.shards.shards[shard].label}[{index}]"
            raise BadSample(UNREADABLE, name, f"{name}: {error}") from error

    def _read(self, shard: int, index: int) -> dict[str, bytes]:
        located, opened = self.shards.shards[shard], self._opened(shard)
        if index >= len(opened.index.samples) or opened.descriptor is None:
            there, expected = len(opened.index.samples), located.shard.samples
            fault = opened.index.fault or shard_index.SHORT
            detail = f"{located.label}: {expected - there} of {expected} samples are lost"
            raise BadSample(fault, located.label, detail)
        key, places = opened.index.samples[index]
        # The key comes from the shard: it is shown, shortened and escaped, and used for nothing else.
        name = f"{located.label}[{index}]"
        shown = f"{name} key {key[:_SHOWN_KEY]!a}"
        wanted = self._wanted(located, places, name, shown)
        return {kind: self._bytes(opened.descriptor, places[kind], kind, name, shown) for kind in wanted}

    def _wanted(self, located: LocatedShard, places: Collection[str], name: str, shown: str) -> list[str]:
        absent = [kind for kind in located.members if kind not in places]
        if absent:
            raise BadSample(INCOMPLETE, name, f"{shown} has no {', '.join(absent)}")
        pictures = [kind for kind in self.shards.images if kind in places]
        if not pictures:
            kinds = ascii(", ".join(sorted(places))[:_SHOWN_KEY])
            raise BadSample(NO_PICTURE, name, f"{shown} has only {kinds}")
        if len(pictures) > 1:  # the same words each time: they are shown once
            which = f"samples have {' and '.join(pictures)}; `image_member` chooses, {pictures[0]} is taken"
            warnings.warn(which, stacklevel=2)
        return [pictures[0], *sorted(self.members.intersection(places))]

    def _bytes(self, descriptor: int, place: tuple[int, int], kind: str, name: str, shown: str) -> bytes:
        offset, size = place
        if size > _MOST_BYTES:
            raise BadSample(OVERSIZED, name, f"{shown}: {kind} has {size:,} bytes, at most {_MOST_BYTES:,} are read")
        content = b""
        # `pread` needs no file position, so it is safe where a fork shares the descriptor. It may give less than asked.
        while len(content) < size and (part := os.pread(descriptor, size - len(content), offset + len(content))):
            content += part
        if len(content) < size:
            if os.fstat(descriptor).st_size >= offset + size:
                raise OSError(errno.EIO, f"{kind} ends early, but the file does not")
            raise BadSample(shard_index.TRUNCATED, name, f"{shown}: {kind} ends early")  # cut while it is being read
        return content

    def _opened(self, shard: int) -> _Open:
        if self._process != os.getpid():  # forked: the parent's descriptors are left to the parent
            self._process, self._open = os.getpid(), OrderedDict()
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        while len(self._open) >= self.most_open:
            _, oldest = self._open.popitem(last=False)
            if oldest.descriptor is not None:
                os.close(oldest.descriptor)
        self._open[shard] = self._open_shard(self.shards.shards[shard])
        return self._open[shard]

    def _open_shard(self, located: LocatedShard) -> _Open:
        path = located.location
        if isinstance(path, str):
            assert self.fetcher is not None  # `open_shards` checks it
            path = self.fetcher.fetch(path, located.shard)
            if path is None:
                return _Open(None, ShardIndex([], UNREACHABLE))
        if not path.is_file():  # a pipe would block for ever
            return _Open(None, ShardIndex([], UNREADABLE if path.exists() else shard_index.MISSING))
        try:
            descriptor = retried(lambda: os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)))
        except OSError:
            return _Open(None, ShardIndex([], UNREADABLE))
        return _Open(descriptor, shard_index.load(path, located.members, located.shard.sha256))
