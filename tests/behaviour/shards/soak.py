"""Read many samples through the loader with every fault planted, and compare what it counts with what was planted.

    python -m tests.behaviour.shards.soak FOLDER --shards 2000

Each fault takes 0.1 % of the shards or samples. Storage fails on 0.3 % of all reads, too: stale handles, input/output
errors, short reads. Exit code 0 if every count is exact and the memory of the first and the last tenth of the reading
are within 3 % of each other.
"""

import argparse
import errno
import gzip
import io
import json
import os
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from data.shards.img2dataset import make_manifest
from data.shards.index import EMPTY, MISSING, NO_PICTURE, NO_TAR, TRUNCATED, index_path
from data.shards.reading.square_image import SquareImage
from tests.fixtures.shards import make_loader, picture

SIZE = 100  # samples of a shard
MAC = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(64)  # how AppleDouble files begin
PICTURES = [picture(number) for number in range(64)]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234\n"


@dataclass
class Planted:
    """What the loader must count and name.

    Attributes:
        lost: Samples by the reason for which they cannot be read.
        files: Files beside the shards that must be named.
        samples: Samples of the manifest.
    """

    lost: Counter[str] = field(default_factory=Counter)
    files: list[str] = field(default_factory=list)
    samples: int = 0


def _put(tar: tarfile.TarFile, name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(content), "/gone.png" if kind != tarfile.REGTYPE else ""
    tar.addfile(info, io.BytesIO(content))


def _link(tar: tarfile.TarFile, key: str) -> str:
    _put(tar, f"{key}.png", b"", tarfile.SYMTYPE)
    return NO_PICTURE


def _hard_link(tar: tarfile.TarFile, key: str) -> str:
    _put(tar, f"{key}.png", b"", tarfile.LNKTYPE)
    return NO_PICTURE


def _no_picture(tar: tarfile.TarFile, key: str) -> str:
    _put(tar, f"{key}.txt", b"a caption")
    return NO_PICTURE


def _empty(tar: tarfile.TarFile, key: str) -> str:
    _put(tar, f"{key}.png", b"")
    return "the file is empty"


def _cut_picture(tar: tarfile.TarFile, key: str) -> str:
    _put(tar, f"{key}.png", PICTURES[0][:-20])
    return "the file is truncated"


def _pointer(tar: tarfile.TarFile, key: str) -> str:
    _put(tar, f"{key}.png", LFS)
    return "this is a Git LFS pointer"


def _hidden(tar: tarfile.TarFile, key: str) -> str:
    _put(tar, f"._{key}.png", MAC)
    _put(tar, f"{key}.png", PICTURES[1])
    return ""


def _dotted(tar: tarfile.TarFile, key: str) -> str:
    _put(tar, f"photo_v1.5_{key}.png", PICTURES[2])
    return ""


def _mask(tar: tarfile.TarFile, key: str) -> str:
    _put(tar, f"{key}.png", PICTURES[3])
    _put(tar, f"{key}.seg.png", PICTURES[4])
    return ""


SAMPLE_FAULTS = (_link, _hard_link, _no_picture, _empty, _cut_picture, _pointer, _hidden, _dotted, _mask)


def _write(path: Path, first: int, every: int, planted: Planted) -> None:
    """A shard of `SIZE` samples; of `every` samples in a row, one each has one of the faults."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(first, first + SIZE):
            kind, key = number % every, f"{number:08d}"
            if kind < len(SAMPLE_FAULTS):
                reason = SAMPLE_FAULTS[kind](tar, key)
                planted.lost.update([reason] if reason else [])
            else:
                _put(tar, f"{key}.png", PICTURES[number % len(PICTURES)])
            _put(tar, f"{key}.json", b"{}") if kind != 7 else None
    planted.samples += SIZE


def _lost_in(first: int, every: int, since: int = 0) -> Counter[str]:
    """Faults of the samples of a shard from one on: they are lost otherwise if their shard is."""
    with tarfile.open(fileobj=io.BytesIO(), mode="w") as nothing:
        kinds = (number % every for number in range(first + since, first + SIZE))
        reasons = (SAMPLE_FAULTS[kind](nothing, "x") for kind in kinds if kind < len(SAMPLE_FAULTS))
        return Counter(reason for reason in reasons if reason)


def _join(path: Path) -> None:
    """Write a shard as two tar files, one behind the other."""
    with tarfile.open(path) as source:
        members = [
            (info, (file.read() if (file := info.isreg() and source.extractfile(info)) else b"")) for info in source
        ]
    parts = []
    for part in (members[: len(members) // 2], members[len(members) // 2 :]):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as target:
            for info, content in part:
                target.addfile(info, io.BytesIO(content))
        parts.append(stream.getvalue())
    path.write_bytes(b"".join(parts))


def plant(folder: Path, shards: int, every: int = 1000) -> Planted:
    """Write shards, make a manifest of them, and spoil one in `every` by each fault of whole shards.

    Args:
        folder: Where they go.
        shards: How many.
        every: Of so many shards or samples, one each has a fault.
    """
    planted = Planted()
    folder.mkdir(parents=True)
    paths = [folder / f"{number:05d}.tar" for number in range(shards)]
    for number, path in enumerate(paths):
        _write(path, number * SIZE, every, planted)
        if number % every == 17 % every:
            _join(path)
    make_manifest(folder, 1.0)
    spoil: tuple[tuple[str, Callable[[Path], object]], ...] = (
        (NO_TAR, lambda path: path.write_bytes(gzip.compress(path.read_bytes()))),
        (NO_TAR, lambda path: path.write_bytes(LFS)),
        (NO_TAR, lambda path: path.write_bytes(b"<html>gone</html>" * 99)),
        (EMPTY, lambda path: path.write_bytes(b"")),
        (MISSING, lambda path: (path.unlink(), path.symlink_to("/nowhere/at/all.tar"))),
    )
    for number, path in enumerate(paths):
        kind = number % every - 20 % every
        if 0 <= kind < len(spoil):
            reason, action = spoil[kind]
            action(path)
            planted.lost[reason] += SIZE
            planted.lost -= _lost_in(number * SIZE, every)
        elif kind == len(spoil):
            since = json.loads(index_path(path).read_bytes())["samples"][SIZE // 2]
            os.truncate(path, min(offset for offset, _ in since[1].values()) + 3)
            planted.lost[TRUNCATED] += SIZE - SIZE // 2
            planted.lost -= _lost_in(number * SIZE, every, SIZE // 2)
        elif kind == len(spoil) + 1:
            copies = [folder / f"{path.stem} (1).tar", folder / f"._{path.name}", folder / f"new-{path.name}"]
            for copy in copies:
                copy.write_bytes(MAC if copy.name.startswith(".") else path.read_bytes())
            planted.files += map(str, copies)
    return planted


@contextmanager
def failing_storage(every: int = 1000) -> Iterator[None]:
    """Let one read in `every` meet a stale handle, one an input/output error, and one get only half of the bytes."""
    real, calls = os.pread, 0

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        nonlocal calls
        calls += 1
        if calls % every in (1, 2):
            raise OSError((errno.ESTALE, errno.EIO)[calls % every - 1], "planted")
        return real(descriptor, size // 2 if calls % every == 3 else size, offset)

    os.pread = pread  # type: ignore[assignment]
    try:
        yield
    finally:
        os.pread = real


def _resident() -> float:
    """Memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(folder: Path, planted: Planted, batch_size: int = 50) -> tuple[list[str], list[float]]:
    """Read an epoch.

    Returns:
        What is not as planted, and the mean memory in MB of each tenth.
    """
    report = folder.parent / "report.txt"
    loader = make_loader(
        folder, SquareImage(8), batch_size, rank=0, world_size=1, ceiling=1.0, report=report,
        batches=planted.samples // batch_size,
    )  # fmt: skip
    memory: list[list[float]] = [[] for _ in range(10)]
    with failing_storage():
        for number, batch in enumerate(loader):
            assert batch["valid"].all()
            memory[number * 10 // len(loader)].append(_resident())
    named = {json.loads(line)["name"] for line in report.read_text().splitlines()}
    wrong = [f"{file} is not named" for file in planted.files if file not in named]
    if loader.skips.counts != planted.lost:
        wrong.append(f"counted {dict(loader.skips.counts)}, planted {dict(planted.lost)}")
    if loader.skips.seen != planted.samples:
        wrong.append(f"{loader.skips.seen} of {planted.samples} samples were seen")
    return wrong, [sum(part) / max(1, len(part)) for part in memory]


def main() -> int:
    """Plant, read, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shards", type=int, default=2000, help=f"Of {SIZE} samples each.")
    options = parser.parse_args()
    begun = time.monotonic()
    planted = plant(options.folder / "shards", options.shards)
    print(f"{planted.samples:,} samples planted in {time.monotonic() - begun:.0f} s; to be lost: {dict(planted.lost)}")
    begun = time.monotonic()
    wrong, memory = soak(options.folder / "shards", planted)
    rate = planted.samples / (time.monotonic() - begun)
    drift = memory[-1] / memory[0] - 1
    print(f"{rate:,.0f} samples/s; MB in each tenth: {', '.join(f'{part:.1f}' for part in memory)}; drift {drift:+.2%}")
    print("\n".join(wrong) or f"every one of {planted.lost.total():,} losses is counted by its reason")
    return int(bool(wrong) or abs(drift) > 0.03)


if __name__ == "__main__":
    sys.exit(main())
