"""Build a folder of shards: in any number of processes, killed and continued at will, always with the same bytes.

Which sources go into which shard is fixed before anything is written, so shards do not depend on each other. A shard is
finished when the index beside it names the sha256 that the tar file has; the manifest is written last.
"""

import contextlib
import fcntl
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.shards.building.image_files import Source
from data.shards.building.processes import in_processes, one_thread
from data.shards.building.writing import write_shard
from data.shards.index import read_index
from data.shards.manifest import MANIFEST, Manifest, Shard, read_manifest, write_manifest
from data.shards.reading.skips import reason_category
from data.shards.shard_set import UNFINISHED
from seecoder.weights.atomic import atomic_path
from seecoder.weights.digests import file_sha256

REPORT = "bad.jsonl"
_GRACE = 100  # a rate over fewer sources says little


@dataclass(frozen=True)
class Build:
    """What shall be built.

    Attributes:
        source: The samples. A bad one that has members all the same is written with what it has.
        folder: Where shards go.
        samples_per_shard: Sources in a shard; bad ones among them leave it smaller.
        shard_bytes: Begin a new shard also when its sources have this many bytes together; None: only count.
        max_bad_rate: Share of bad sources above which the build stops.

    Raises:
        ValueError: A number is out of range, or there are no sources.
    """

    source: Source
    folder: Path
    samples_per_shard: int = 1000
    shard_bytes: int | None = None
    max_bad_rate: float = 0.01

    def __post_init__(self):
        if self.samples_per_shard < 1:
            raise ValueError(f"`samples_per_shard`={self.samples_per_shard} must be at least 1.")
        if self.shard_bytes is not None and self.shard_bytes < 1:
            raise ValueError(f"`shard_size`={self.shard_bytes} must be at least 1 byte.")
        if not 0 <= self.max_bad_rate <= 1:
            raise ValueError(f"`max_bad_rate`={self.max_bad_rate} must be a share in [0, 1].")
        if len(self.source) == 0:
            raise ValueError("There is nothing to build from: no pictures were found.")

    @property
    def settings(self) -> dict[str, Any]:
        """All that the bytes depend on."""
        return dict(self.source.settings) | {
            "samples_per_shard": self.samples_per_shard,
            "shard_bytes": self.shard_bytes,
        }

    def ranges(self) -> list[tuple[int, int]]:
        """First source of each shard, and the one after its last."""
        borders, size = [0], 0
        sizes = self.source.sizes
        for number in range(len(self.source)):
            add = 0 if sizes is None else sizes[number]
            full = self.shard_bytes is not None and size + add > self.shard_bytes
            if number > borders[-1] and (number - borders[-1] >= self.samples_per_shard or full):
                borders.append(number)
                size = 0
            size += add
        return list(zip(borders, [*borders[1:], len(self.source)], strict=True))

    def path(self, number: int) -> Path:
        """`00000.tar`, `00001.tar`, ..."""
        return self.folder / f"{number:05d}.tar"


@dataclass(frozen=True)
class Finished:
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

    done: dict[int, Finished] = field(default_factory=dict)
    sources: int = 0
    kept: int = 0
    bad: Counter[str] = field(default_factory=Counter)

    def add(self, number: int, finished: Finished) -> None:
        """Take in a finished shard."""
        self.done[number] = finished
        self.sources += finished.sources
        self.kept += finished.kept
        self.bad.update(reason_category(reason) for _, reason in finished.bad)


@contextlib.contextmanager
def claimed_folder(build: Build) -> Iterator[None]:
    """Make the folder, or see that it belongs to the same build, and keep other builds out of it.

    Raises:
        FileExistsError: The folder holds something else, or another process is building there.
    """
    build.folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(build.folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given back by the system if we are killed
    except BlockingIOError:
        os.close(descriptor)
        raise FileExistsError(f"Another process is building in `{build.folder}` right now. Wait for it.") from None
    try:
        _check_folder(build)
        for left_behind in build.folder.glob("*.partial"):
            left_behind.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


def _check_folder(build: Build) -> None:
    state = build.folder / UNFINISHED
    if (build.folder / MANIFEST).exists():
        _compare(build, dict(read_manifest(build.folder).settings))
    elif state.exists():
        _compare(build, json.loads(state.read_text(encoding="utf-8")))
    elif any(build.folder.glob("*.tar")):
        raise FileExistsError(f"`{build.folder}` holds .tar files of unknown origin. Choose an empty or new folder.")
    else:
        with atomic_path(state) as partial:
            partial.write_text(json.dumps(build.settings, indent=1) + "\n", encoding="utf-8")


def _compare(build: Build, there: dict[str, Any]) -> None:
    was, now = dict(_flat(there)), dict(_flat(build.settings))
    different = [name for name in sorted(now.keys() | was.keys()) if now.get(name) != was.get(name)]
    if different:
        changes = ", ".join(f"{name}: {was.get(name)} there, {now.get(name)} now" for name in different)
        raise FileExistsError(f"`{build.folder}` holds another build ({changes}). Choose another folder, or remove it.")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested settings."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def ensure(build: Build, number: int, start: int, stop: int, tick: Callable[[int], object] | None = None) -> Finished:
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
        if tick is not None:
            tick(stop - start)
        return found
    bad: list[tuple[str, str]] = []

    def samples() -> Iterator[tuple[str, Any]]:
        for name, key, members, reason in build.source.samples(start, stop):
            if reason:
                bad.append((name, reason))
            if members:
                yield key, members
            if tick is not None:
                tick(1)

    notes = {"bad": bad, "sources": stop - start}
    return Finished(write_shard(build.path(number), samples(), notes), stop - start, bad, kept=False)


def _verified(path: Path, sources: int) -> Finished | None:
    found = read_index(path)
    if found is None:
        return None
    index, rest = found
    if index.samples and not (path.exists() and file_sha256(path) == rest["sha256"]):
        return None
    bad = [(str(name), str(reason)) for name, reason in rest["notes"].get("bad", [])]
    if rest["notes"].get("sources", len(index.samples) + len(bad)) != sources:
        return None
    return Finished(Shard(path.name, len(index.samples), rest["bytes"], rest["sha256"]), sources, bad, kept=True)


def run_build(
    build: Build, workers: int = 0, tick: Callable[[int], object] = lambda _: None
) -> tuple[Manifest, BuildTotals]:
    """Build, or finish what was begun; inside `claimed_folder`.

    Args:
        build: What shall be built.
        workers: Processes; 0 and 1 work in this one.
        tick: Called with the number of sources just dealt with.

    Returns:
        The manifest, and the totals.

    Raises:
        RuntimeError: Too many sources are bad. Finished shards stay; the report names the bad ones so far.
    """
    progress = BuildTotals()
    tasks = [(number, start, stop) for number, (start, stop) in enumerate(build.ranges())]
    try:
        if workers > 1:
            for (number, *_), finished in in_processes(ensure, build, tasks, workers):
                tick(finished.sources)
                progress.add(number, finished)
                _check_rate(build, progress, _GRACE)
        else:
            with one_thread():
                for task in tasks:
                    progress.add(task[0], ensure(build, *task, tick))
                    _check_rate(build, progress, _GRACE)
        _check_rate(build, progress, 1)
    finally:
        _write_report(build, progress)
    return _complete(build, progress), progress


def _check_rate(build: Build, progress: BuildTotals, least: int) -> None:
    count = progress.bad.total()
    if progress.sources < least or count <= build.max_bad_rate * progress.sources:
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
    with atomic_path(path) as partial:
        rows = (json.dumps({"source": name, "reason": reason}) + "\n" for name, reason in bad)
        partial.write_text("".join(rows), encoding="utf-8")


def _complete(build: Build, progress: BuildTotals) -> Manifest:
    shards = [progress.done[number].shard for number in sorted(progress.done)]
    manifest = Manifest(tuple(shard for shard in shards if shard.samples), build.source.members, build.settings)
    if manifest.samples == 0:
        raise RuntimeError(f"Not one of {progress.sources} sources is usable. See {build.folder / REPORT}.")
    write_manifest(build.folder, manifest)
    (build.folder / UNFINISHED).unlink(missing_ok=True)
    return manifest
