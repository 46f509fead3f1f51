"""Shards are written whole or not at all, and always with the same bytes."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from webdataset.tariterators import group_by_keys, tar_file_expander

from data.shards.building.writing import write_shard
from data.shards.index import read_headers, read_index
from seecoder.weights.digests import file_sha256

SAMPLES = [(f"{number:03d}", {"png": b"picture %d" % number, "json": b"{}"}) for number in range(5)]


def test_equal_samples_give_equal_bytes(tmp_path: Path):
    first, second = (write_shard(tmp_path / name, SAMPLES) for name in ("a.tar", "b.tar"))
    assert (first.samples, first.bytes, first.sha256) == (5, second.bytes, second.sha256)
    assert file_sha256(tmp_path / "a.tar") == first.sha256
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {(info.mtime, info.uid, info.gid, info.uname) for info in tar} == {(0, 0, 0, "seecoder")}


def test_webdataset_reads_what_was_written(tmp_path: Path):
    write_shard(tmp_path / "a.tar", SAMPLES)
    with (tmp_path / "a.tar").open("rb") as file:
        read = list(group_by_keys(tar_file_expander([{"url": "a.tar", "stream": file}])))
    assert [(sample["__key__"], {"png": sample["png"], "json": sample["json"]}) for sample in read] == SAMPLES


def test_an_error_leaves_nothing_and_the_old_shard_stays(tmp_path: Path):
    def failing() -> Iterator[tuple[str, dict[str, bytes]]]:
        yield from SAMPLES[:2]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_shard(tmp_path / "a.tar", failing())
    assert not list(tmp_path.iterdir())
    before = write_shard(tmp_path / "a.tar", SAMPLES).sha256
    with pytest.raises(OSError, match="disk full"):
        write_shard(tmp_path / "a.tar", failing())
    assert file_sha256(tmp_path / "a.tar") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.index.json", "a.tar"]


def test_no_samples_make_an_index_only(tmp_path: Path):
    notes: dict[str, list[str]] = {"bad": []}

    def none() -> Iterator[tuple[str, dict[str, bytes]]]:
        notes["bad"].append("all of them")
        yield from ()

    assert write_shard(tmp_path / "a.tar", none(), notes).samples == 0
    kept = read_index(tmp_path / "a.tar")
    assert kept is not None
    assert kept[1]["notes"] == {"bad": ["all of them"]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.index.json"]


def test_index_agrees_with_the_tar_file(tmp_path: Path):
    write_shard(tmp_path / "a.tar", SAMPLES)
    kept = read_index(tmp_path / "a.tar")
    assert kept is not None
    assert kept[0] == read_headers(tmp_path / "a.tar")
