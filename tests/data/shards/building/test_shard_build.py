"""Builds end with the same bytes wherever they were interrupted, and stop where too much is bad."""

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from webdataset.tariterators import group_by_keys, tar_file_expander

from data import build
from data.shards.building import shard_build
from data.shards.building.claim import claimed_folder
from data.shards.building.shard_build import Build, run_build, write_shard
from data.shards.building.world_scenes import WorldScenes
from data.shards.index import read_headers, read_index
from seecoder.weights.digests import file_sha256
from tests.fixtures.shards import file_digests

WORLD = ["--count", "60", "--samples-per-shard", "7", "--size", "16"]


def test_early_stop_above_the_rate_does_not_read_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shard_build, "_MIN_SOURCES", 4)
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number:02d}.png").write_bytes(b"rubbish")
    assert build.main(["folder", str(folder), str(tmp_path / "out"), "--samples-per-shard", "2"]) == 2
    assert len((tmp_path / "out" / "bad.jsonl").read_text().splitlines()) == 4


def test_interrupted_anywhere_the_end_is_the_same(tmp_path: Path):
    source = WorldScenes(40, 0, 16)
    whole = Build(source, tmp_path / "whole", samples_per_shard=6)
    with claimed_folder(whole):
        run_build(whole)
    expected = file_digests(tmp_path / "whole")
    for moment in (0, 5, 6, 17, 39):
        broken = Build(source, tmp_path / f"broken{moment}", samples_per_shard=6)
        ticks = iter(range(moment))

        def stop(_: int, ticks: Any = ticks) -> None:
            if next(ticks, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), claimed_folder(broken):
            run_build(broken, tick=stop)
        assert not (broken.folder / "manifest.json").exists()
        with claimed_folder(broken):
            run_build(broken)
        assert file_digests(broken.folder) == expected


def test_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    written: list[Path] = []
    original: Callable[..., Any] = shard_build.write_shard

    def failing(path: Path, samples: Any, notes: Any) -> Any:
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(path)
        return original(path, samples, notes)

    with monkeypatch.context() as patch:
        patch.setattr(shard_build, "write_shard", failing)
        assert build.main(["world", str(tmp_path / "out"), *WORLD]) == 2
    assert "No space left" in capsys.readouterr().err
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".json"] * 4 + [".tar"] * 3
    assert build.main(["world", str(tmp_path / "out"), *WORLD]) == 0


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
