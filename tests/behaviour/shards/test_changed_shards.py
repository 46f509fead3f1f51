"""Shards that are not, or no longer, what the manifest says: through the real loader, counters are exact."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data.build import main as build
from data.shards import index as shard_index
from data.shards.building.shard_build import write_shard
from data.shards.index import index_path, read_headers
from data.shards.reading.shard_loader import ShardLoader
from data.shards.reading.square_image import SquareImage
from tests.fixtures.shards import make_loader

COUNTS = [5, 6, 7]
TOTAL = sum(COUNTS)
SECOND = range(5, 11)  # sample ids of the shard that changes


@pytest.fixture
def folder(make_shards: Callable[..., Path]) -> Path:
    return make_shards(COUNTS)


def loader(folder: Path, **settings: object) -> ShardLoader:
    """A pass is an epoch, in batches of one; `window`=1 lets go of a shard soon, otherwise all stay open."""
    options = {"batches": TOTAL, "ceiling": 1.0, "window": 3} | settings
    return make_loader(folder, SquareImage(8), 1, rank=0, world_size=1, **options)  # type: ignore[arg-type]


def epoch(own: ShardLoader) -> list[tuple[int, int]]:
    """Sample ids of a pass, each with the number that its picture shows."""
    rows = ((int(batch["sample_id"]), batch["pixels"][0, :2, 0, 0].tolist()) for batch in own)
    return [(sample_id, red + 256 * green) for sample_id, (red, green) in rows]


def check(own: ShardLoader, seen: list[tuple[int, int]], lost: range, reason: str) -> None:
    """The pass holds what the manifest says less what was lost, and the counters say so."""
    assert {sample_id for sample_id, _ in seen} == set(range(TOTAL)) - set(lost)
    assert all(sample_id == shown for sample_id, shown in seen), "nobody is taken for another"
    assert len(seen) == TOTAL, "batches keep their size"
    assert own.skips.counts == ({reason: len(lost)} if lost else {})
    assert own.skips.seen == len(seen)


def sample_end(path: Path, number: int, kind: str) -> int:
    """Where the block after a member begins."""
    offset, size = read_headers(path).samples[number][1][kind]
    return -(-(offset + size) // 512) * 512


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize(("number", "kind", "left"), [(2, "json", 2), (2, "png", 3), (5, "png", 6)])
def test_cut_where_one_member_ends(folder: Path, with_index: bool, number: int, kind: str, left: int):
    path = folder / "00001.tar"
    os.truncate(path, sample_end(path, number, kind))
    if not with_index:
        index_path(path).unlink()
    own = loader(folder)
    check(own, epoch(own), SECOND[left:], shard_index.TRUNCATED)
    assert list(own.skips.names) == ([str(path)] if left < 6 else [])


@pytest.mark.parametrize("with_index", [True, False])
def test_a_damaged_header_in_the_middle(folder: Path, with_index: bool):
    path = folder / "00001.tar"
    offset, _ = read_headers(path).samples[3][1]["json"]
    with path.open("r+b") as file:
        file.seek(offset - 512)
        file.write(b"\xff" * 100)
    if not with_index:
        index_path(path).unlink()
    own = loader(folder)
    check(own, epoch(own), range(0) if with_index else SECOND[3:], shard_index.DAMAGED)


@pytest.mark.parametrize("with_index", [True, False])
def test_another_checksum_costs_nothing_where_all_is_readable(
    folder: Path, with_index: bool, capsys: pytest.CaptureFixture[str]
):
    path = folder / "00001.tar"
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")  # behind the end of the archive
    if not with_index:
        index_path(path).unlink()
    own = loader(folder)
    check(own, epoch(own), range(0), "")
    assert build(["verify", str(folder)]) == 2
    assert "00001.tar has another sha256" in capsys.readouterr().err


@pytest.mark.parametrize("with_index", [True, False])
def test_more_samples_than_the_manifest_says_stay_unread(folder: Path, make_shards, with_index: bool):
    longer = make_shards([5, 9], "longer")  # its second shard begins as ours does, and goes on
    shutil.copy(longer / "00001.tar", folder / "00001.tar")
    if with_index:
        shutil.copy(index_path(longer / "00001.tar"), index_path(folder / "00001.tar"))
    own = loader(folder)
    check(own, epoch(own), range(0), "")


def replacement(folder: Path, make_shards: Callable[..., Path], count: int) -> Path:
    """A whole shard that begins as the second of `folder` does and has `count` samples."""
    other = make_shards([5, count], "other") / "00001.tar"
    return Path(shutil.copy(other, folder / "new"))


@pytest.mark.parametrize("number", [1, 2, 0])
def test_a_shard_that_is_replaced_while_it_is_open_is_read_to_its_end(folder: Path, make_shards, number: int):
    own = loader(folder)
    check(own, epoch(own), range(0), "")
    os.replace(replacement(folder, make_shards, 4), folder / f"{number:05d}.tar")
    assert len(epoch(own)) == TOTAL
    assert not own.skips.counts, "what is open stays as it was"


def test_a_shard_that_was_replaced_between_epochs_is_read_anew_and_its_loss_counted(folder: Path, make_shards):
    own = loader(folder, window=1)
    check(own, epoch(own), range(0), "")
    own.dataset.reader.close()  # as it is when other shards were opened in between
    os.replace(replacement(folder, make_shards, 4), folder / "00001.tar")
    seen = epoch(own)
    assert {sample_id for sample_id, _ in seen} == set(range(TOTAL)) - set(SECOND[4:])
    assert all(sample_id == shown for sample_id, shown in seen)
    assert own.skips.counts == {shard_index.SHORT: 2}
    assert (own.skips.seen, own.skips.skipped) == (2 * TOTAL, 2)
    again = loader(folder)
    check(again, epoch(again), SECOND[4:], shard_index.SHORT)


def test_a_shard_that_is_cut_between_epochs_while_it_is_open_loses_its_tail_by_name(folder: Path):
    own = loader(folder)
    check(own, epoch(own), range(0), "")
    path = folder / "00001.tar"
    offset, _ = read_headers(path).samples[4][1]["png"]
    os.truncate(path, offset + 5)
    seen = epoch(own)
    assert {sample_id for sample_id, _ in seen} == set(range(TOTAL)) - set(SECOND[4:])
    assert own.skips.counts == {shard_index.TRUNCATED: 2}
    assert own.skips.names == {f"{path}[{number}]": shard_index.TRUNCATED for number in (4, 5)}


def test_a_shard_of_equal_size_with_other_pictures_is_told_by_verify_alone(
    folder: Path, capsys: pytest.CaptureFixture[str], make_picture: Callable[..., bytes]
):
    path = folder / "00001.tar"
    before, kept = path.stat().st_size, index_path(path).read_bytes()
    samples = [(f"{n:06d}", {"json": b'{"number": 1}', "png": make_picture(n + 100)}) for n in SECOND]
    write_shard(path, samples)
    index_path(path).write_bytes(kept)
    assert path.stat().st_size == before
    own = loader(folder)
    seen = epoch(own)
    assert sorted(shown for _, shown in seen) == sorted({*range(TOTAL)} - {*SECOND} | {n + 100 for n in SECOND})
    assert not own.skips.counts
    assert build(["verify", str(folder)]) == 2
    assert "00001.tar has another sha256" in capsys.readouterr().err
