"""Builds end with the same bytes wherever they were interrupted, and stop where too much is bad."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data import build
from data.shards.building import shard_build
from data.shards.building.claim import claimed_folder
from data.shards.building.shard_build import Build, run_build
from data.shards.building.world_scenes import WorldScenes
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
