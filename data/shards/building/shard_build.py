"""Build a folder of shards: in any number of processes, killed and continued at will, always with the same bytes.

Which sources go into which shard is fixed before anything is written, so shards do not depend on each other. A shard is
finished when the index beside it names the sha256 that the tar file has; the manifest is written last.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from webdataset.writer import TarWriter

from data.shards.building.processes import in_processes, one_thread
from data.shards.building.sources import Source
from data.shards.img2dataset import UNFINISHED
from data.shards.index import ShardIndex, read_headers, read_index, write_index
from data.shards.manifest import Manifest, Shard, write_manifest
from data.shards.picture_sizes import measure_pictures
from data.shards.reading.skips import reason_category
from data.shards.shard_set import LocatedShard
from seecoder.checks import check, number, optional, whole
from seecoder.weights.atomic import atomic_path, write_text
from seecoder.weights.digests import file_sha256

REPORT = "bad.jsonl"
_MIN_SOURCES = 100  # a rate over fewer sources says little


@dataclass(frozen=True)
class Build:
    """What shall be built.

    Attributes:
        source: The samples. A bad one that has members all the same is written with what it has.
        folder: Where shards go.
        samples_per_shard: Sources in a shard; bad ones among them leave it smaller.
        shard_bytes: Begin a new shard also when its sources have this many bytes together; None: only count.
        max_bad_rate: Fraction of bad sources above which the build stops.
        originals: Shards whose names and numbers of samples are kept; none: the numbers above decide.

    Raises:
        ValueError: A number is out of range, or there are no sources.
    """

    source: Source
    folder: Path
    samples_per_shard: int = 1000
    shard_bytes: int | None = None
    max_bad_rate: float = 0.01
    originals: tuple[LocatedShard, ...] = ()

    def __post_init__(self) -> None:
        check(self, samples_per_shard=whole(1), shard_bytes=optional(whole(1)), max_bad_rate=number(0, 1))
        if len(self.source) == 0:
            raise ValueError("There is nothing to build from: no pictures were found.")

    @property
    def settings(self) -> dict[str, Any]:
        """All that the bytes depend on."""
        size = {"samples_per_shard": self.samples_per_shard, "shard_bytes": self.shard_bytes}
        return dict(self.source.settings) | ({} if self.originals else size)

    def ranges(self) -> list[tuple[int, int]]:
        """First source of each shard, and the one after its last."""
        if self.originals:
            return list(pairwise(accumulate((row.shard.samples for row in self.originals), initial=0)))
        borders, size = [0], 0
        sizes = self.source.sizes
        for source in range(len(self.source)):
            add = 0 if sizes is None else sizes[source]
            full = self.shard_bytes is not None and size + add > self.shard_bytes
            if source > borders[-1] and (source - borders[-1] >= self.samples_per_shard or full):
                borders.append(source)
                size = 0
            size += add
        return list(zip(borders, [*borders[1:], len(self.source)], strict=True))

    def path(self, number: int) -> Path:
        """`00000.tar`, `00001.tar`, ..., or the original's name."""
        return self.folder / (self.originals[number].shard.name if self.originals else f"{number:05d}.tar")


@dataclass(frozen=True)
class FinishedShard:
    """A finished shard.

    Attributes:
        shard: Its entry for the manifest.
        sources: Number of sources that it was made from.
        bad: Name and reason of the bad ones.
        kept: An earlier run had written it.
    """

    shard: Shard
    sources: int
    bad: list[tuple[str, str]]
    kept: bool


@dataclass
class BuildTotals:
    """Running totals of a build.

    Attributes:
        done: Finished shards by number.
        sources: Sources dealt with.
        kept: Shards that an earlier run had written.
        bad: Bad sources by category.
    """

    done: dict[int, FinishedShard] = field(default_factory=dict)
    sources: int = 0
    kept: int = 0
    bad: Counter[str] = field(default_factory=Counter)

    def add(self, number: int, finished: FinishedShard) -> None:
        """Take in a finished shard."""
        self.done[number] = finished
        self.sources += finished.sources
        self.kept += finished.kept
        self.bad.update(reason_category(reason) for _, reason in finished.bad)


def build_shard(
    build: Build, number: int, start: int, stop: int, tick: Callable[[int], object] = lambda _: None
) -> FinishedShard:
    """Verify a shard that an earlier run wrote, or write it.

    Args:
        build: What is built.
        number: Number of the shard.
        start: First source.
        stop: The one after the last.
        tick: Called with the number of sources just dealt with.
    """
    found = _verified(build.path(number), stop - start)
    if found is not None:
        tick(stop - start)
        return found
    bad: list[tuple[str, str]] = []

    def samples() -> Iterator[tuple[str, Any]]:
        for name, key, members, reason in build.source.samples(start, stop):
            if reason:
                bad.append((name, reason))
            if members:
                yield key, members
            tick(1)

    notes = {"bad": bad, "sources": stop - start}
    return FinishedShard(write_shard(build.path(number), samples(), notes), stop - start, bad, kept=False)


def _verified(path: Path, sources: int) -> FinishedShard | None:
    found = read_index(path)
    if found is None:
        return None
    index, rest = found
    if index.samples and not (path.exists() and file_sha256(path) == rest["sha256"]):
        return None
    bad = [(str(name), str(reason)) for name, reason in rest["notes"].get("bad", [])]
    if rest["notes"].get("sources", len(index.samples) + len(bad)) != sources:
        return None
    shard = Shard(path.name, len(index.samples), rest["bytes"], rest["sha256"], measure_pictures(path, index))
    return FinishedShard(shard, sources, bad, kept=True)


def run_build(
    build: Build, workers: int = 0, tick: Callable[[int], object] = lambda _: None
) -> tuple[Manifest, BuildTotals]:
    """Build, or finish what was begun; inside `claim.claimed_folder`.

    Args:
        build: What shall be built.
        workers: Processes; 0 and 1 work in this one.
        tick: Called with the number of sources just dealt with.

    Returns:
        The manifest, and the totals.

    Raises:
        RuntimeError: Too many sources are bad. FinishedShard shards stay; the report names the bad ones so far.
    """
    progress = BuildTotals()
    tasks = [(number, start, stop) for number, (start, stop) in enumerate(build.ranges())]
    try:
        if workers > 1:
            for (number, *_), finished in in_processes(build_shard, build, tasks, workers):
                tick(finished.sources)
                progress.add(number, finished)
                _check_rate(build, progress, _MIN_SOURCES)
        else:
            with one_thread():
                for task in tasks:
                    progress.add(task[0], build_shard(build, *task, tick))
                    _check_rate(build, progress, _MIN_SOURCES)
        _check_rate(build, progress, 1)
    finally:
        _write_report(build, progress)
    return _complete(build, progress), progress


def _check_rate(build: Build, progress: BuildTotals, min_sources: int) -> None:
    count = progress.bad.total()
    if progress.sources < min_sources or count <= build.max_bad_rate * progress.sources:
        return
    reasons = ", ".join(f"{number} x {reason}" for reason, number in progress.bad.most_common(3))
    raise RuntimeError(
        f"{count} of {progress.sources} sources are bad ({count / progress.sources:.2%}; `max_bad_rate` is "
        f"{build.max_bad_rate:.2%}): {reasons}. See {build.folder / REPORT}; repair them or allow more, and run again."
    )


def _write_report(build: Build, progress: BuildTotals) -> None:
    bad = [row for number in sorted(progress.done) for row in progress.done[number].bad]
    path = build.folder / REPORT
    if not bad:
        path.unlink(missing_ok=True)
        return
    write_text(path, "".join(json.dumps({"source": name, "reason": reason}) + "\n" for name, reason in bad))


def _complete(build: Build, progress: BuildTotals) -> Manifest:
    shards = [progress.done[number].shard for number in sorted(progress.done)]
    manifest = Manifest(tuple(shard for shard in shards if shard.samples), build.source.members, build.settings)
    if manifest.samples == 0:
        raise RuntimeError(f"Not one of {progress.sources} sources is usable. See {build.folder / REPORT}.")
    write_manifest(build.folder, manifest)
    (build.folder / UNFINISHED).unlink(missing_ok=True)
    return manifest


_NOTHING = hashlib.sha256(b"").hexdigest()


def write_shard(
    path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]], notes: dict[str, Any] | None = None
) -> Shard:
    """Write a shard and the index beside it, the index last: a shard with a matching index is finished.

    No tar file is written if there are no samples, only the index that says so.

    Args:
        path: Where the shard shall be; it appears there whole or not at all.
        samples: Key and members (bytes by extension) of each sample, in order.
        notes: Kept in the index; read after the last sample was taken, so that `samples` may still fill it.

    Returns:
        The shard's entry for a manifest.
    """
    remaining = iter(samples)
    first = next(remaining, None)
    if first is None:
        path.unlink(missing_ok=True)
        write_index(path, ShardIndex([]), _NOTHING, notes)
        return Shard(path.name, 0, 0, _NOTHING)
    # Fixed times and owners: equal samples give equal bytes, whoever writes them and when.
    fixed: dict[str, Any] = {"mtime": 0, "user": "seecoder", "group": "seecoder", "mode": 0o444}
    with atomic_path(path) as partial, partial.open("wb") as file, TarWriter(file, encoder=False, **fixed) as writer:
        for key, members in itertools.chain([first], remaining):
            writer.write({"__key__": key, **members})
    sha256, index = file_sha256(path), read_headers(path)
    write_index(path, index, sha256, notes)
    return Shard(path.name, len(index.samples), path.stat().st_size, sha256, measure_pictures(path, index))
