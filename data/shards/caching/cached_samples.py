"""Copies shards and lays beside each picture what frozen models make of it: a build like any other.

Sample for sample the copy has the order of the original, so that a training sees the same samples in the same order on
either. A picture that cannot be used, and even a sample that is lost, keeps its place: training will skip it there, and
put the same substitute in, as it would have done with the original.
"""

import re
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from data.shards import index as shard_index
from data.shards.building.sources import Item
from data.shards.caching.cache_source import Extra
from data.shards.manifest import IMAGE_MEMBERS
from data.shards.reading.shard_reader import BadSample, ShardReader
from data.shards.reading.square_image import SquareImage
from data.shards.shard_set import LocatedShard, ShardSet
from seecoder.checks import check, whole
from seecoder.images.gate import ImageError
from seecoder.weights.digests import file_sha256

LOST = "lost"  # the only member of a sample that was lost: it holds the reason
NOT_FINITE = "moments are not finite in half precision"

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")


@dataclass(frozen=True)
class _Row:
    """A sample as it was read: what is cut from it if it can be used, its members as they are, and what is wrong."""

    cut: Tensor | None
    members: Mapping[str, bytes]
    reason: str = ""


@dataclass(frozen=True)
class CachedSamples:
    """A `Source` of samples from shards, with extras.

    Attributes:
        shards: The original shards.
        picture: How training cuts its pictures.
        extras: What is computed of it.
        batch_size: Pictures computed at once. Batches never straddle shards, so that a shard's bytes do not depend on
            where an interrupted build goes on.
        threads: Pictures decoded at the same time.
    """

    sizes = None  # borders are those of the original

    shards: ShardSet
    picture: SquareImage
    extras: tuple[Extra, ...]
    batch_size: int = 8
    threads: int = 1

    def __post_init__(self) -> None:
        check(self, batch_size=whole(1), threads=whole(1))

    @property
    def settings(self) -> dict[str, Any]:
        """All that the samples depend on: the original shards, the extras, and how many are computed at once."""
        key = "shards_sha256" if self.shards.is_hashed else "shards_named"
        about: dict[str, Any] = {"kind": "cache", key: self.shards.fingerprint}
        for extra in self.extras:
            about |= extra.settings
        return about | {"batch_size": self.batch_size}

    @property
    def members(self) -> tuple[str, ...]:
        """As in the original: moments are not required, because a bad picture has none."""
        return self.shards.shards[0].members

    def __len__(self) -> int:
        return sum(self.shards.counts)

    def samples(self, start: int, stop: int) -> Iterator[Item]:
        """Copy samples `start` to `stop - 1`, all of one shard, with their extras."""
        borders = list(accumulate(self.shards.counts, initial=0))
        number = bisect_right(borders, start) - 1
        located, first = self.shards.shards[number], start - borders[number]
        if stop > borders[number + 1]:
            raise ValueError(f"`start`={start}, `stop`={stop}: samples of more than one shard.")
        shard = _ShardCopy(located, {extra.source.member() for extra in self.extras})
        with ThreadPoolExecutor(self.threads) as pool:
            numbers = range(first, first + stop - start)
            parts = [numbers[at : at + self.batch_size] for at in range(0, len(numbers), self.batch_size)]
            for part, rows in _ahead(pool, partial(self._read, shard), parts):
                yield from self._finish(shard, part, rows)

    def _read(self, shard: "_ShardCopy", number: int) -> _Row:
        try:
            members = shard.read(number)
        except BadSample as error:
            return _Row(None, {LOST: error.reason.encode()}, error.reason)
        try:
            # A centre crop is the same for every epoch and sample.
            return _Row(self.picture(members, 0, 0)["pixels"], members)
        except ImageError as error:
            return _Row(None, members, error.reason)

    def _finish(self, shard: "_ShardCopy", numbers: range, rows: list[_Row]) -> Iterator[Item]:
        cuts = {number: row.cut for number, row in zip(numbers, rows, strict=True) if row.cut is not None}
        made = {}
        for shape in dict.fromkeys(cut.shape for cut in cuts.values()):
            alike = {number: cut for number, cut in cuts.items() if cut.shape == shape}
            pixels = torch.stack([*alike.values()])
            made |= dict(zip(alike, zip(*(extra(pixels) for extra in self.extras), strict=True), strict=True))
        for number, row in zip(numbers, rows, strict=True):
            name, key = f"{shard.name}[{number}]", shard.key(number)
            if number not in made:
                yield Item(name, key, row.members, row.reason)
                continue
            extras = {extra.source.member(): content for extra, content in zip(self.extras, made[number], strict=True)}
            usable = {kind: content for kind, content in extras.items() if content is not None}
            yield Item(name, key, {**row.members, **usable}, "" if len(usable) == len(extras) else NOT_FINITE)


def with_present_digests(shards: ShardSet) -> ShardSet:
    """The same shards with the digests of their files as they are now, whatever a manifest said of them once.

    Shards that were exchanged under their names then are others, and a cache of the former ones is not taken for one of
    them. A shard that is not there keeps what the manifest says.
    """
    rows = []
    for row in tqdm(shards.shards, desc="hashing", unit="shard", disable=None):
        present = row.shard
        with suppress(OSError):
            present = replace(present, sha256=file_sha256(Path(row.location)))
        if row.shard.sha256 not in (None, present.sha256):
            print(f"`{row.label}` has other bytes than its manifest says; it is copied as it is")
        rows.append(replace(row, shard=present))
    return replace(shards, shards=tuple(rows))


class _ShardCopy:
    """Reads whole samples of one shard, and gives each a key of its own."""

    def __init__(self, located: LocatedShard, left_out: set[str]) -> None:
        self.name = located.shard.name
        samples = []
        if isinstance(located.location, Path):
            samples = shard_index.load(located.location, located.members, located.shard.sha256).samples
        kinds = {kind for _, places in samples for kind in places}
        self._keys = [key for key, _ in samples]
        whole = len(set(self._keys)) == located.shard.samples
        self._keep_keys = whole and all(map(_PLAIN_KEY.fullmatch, self._keys))
        self._reader = ShardReader(ShardSet((located,)), kinds - left_out - set(IMAGE_MEMBERS) - {LOST})
        self._lock = threading.Lock()

    def key(self, number: int) -> str:
        """The original's key, unless the shard lacks samples or has keys that are odd or doubled: all are numbered."""
        # Neighbours with one key would become one sample as soon as their members differ.
        return self._keys[number] if self._keep_keys else f"{number:09d}"

    def read(self, number: int) -> dict[str, bytes]:
        """Read picture and other members, byte by byte as they are."""
        with self._lock:  # the reader opens files on first use; reading is quick, decoding is what threads are for
            return self._reader.read(0, number)


def _ahead(
    pool: ThreadPoolExecutor, read: Callable[[int], _Row], parts: Iterable[range]
) -> Iterator[tuple[range, list[_Row]]]:
    """Read one part ahead of the one that is being worked on."""
    waiting: tuple[range, Iterator[_Row]] | None = None
    for part in (*parts, range(0)):
        begun = (part, pool.map(read, part))
        if waiting is not None:
            yield waiting[0], list(waiting[1])
        waiting = begun
