"""A folder belongs to one build, and one process at a time works in it."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from data import build
from data.shards.building.claim import claimed_folder, is_finished
from data.shards.building.shard_build import Build, run_build
from data.shards.building.world_scenes import WorldScenes
from tests.fixtures.shards import file_digests

WORLD = ["--count", "60", "--samples-per-shard", "7", "--size", "16"]


def test_another_build_in_the_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    assert build.main(["world", str(out), *WORLD]) == 0
    before = file_digests(out)
    capsys.readouterr()
    assert build.main(["world", str(out), *WORLD, "--seed", "1"]) == 2
    assert "holds another build (seed: 0 there, 1 now)" in capsys.readouterr().err
    assert file_digests(out) == before
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "00000.tar").write_bytes(b"precious")
    assert build.main(["world", str(tmp_path / "foreign"), *WORLD]) == 2
    assert "unknown origin" in capsys.readouterr().err
    assert (tmp_path / "foreign" / "00000.tar").read_bytes() == b"precious"


def test_two_builds_at_a_time_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    own = Build(WorldScenes(60, 0, 16), tmp_path / "out", samples_per_shard=7)
    with claimed_folder(own):
        assert build.main(["world", str(tmp_path / "out"), *WORLD]) == 2
    assert "Another process is building" in capsys.readouterr().err
    assert build.main(["world", str(tmp_path / "out"), *WORLD]) == 0


def test_a_killed_owner_does_not_keep_the_folder(tmp_path: Path):
    own = Build(WorldScenes(6, 0, 16), tmp_path / "out")
    with claimed_folder(own):
        lock = next(own.folder.glob(".*.lock"))
    code = (
        "import filelock, sys, time; own = filelock.FileLock(sys.argv[1]); own.acquire(); "
        "print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(FileExistsError, match="Another process is building"), claimed_folder(own):
            pass
        owner.kill()
        owner.wait()
    assert lock.exists(), "left behind"
    with claimed_folder(own):
        pass
    assert not lock.exists()


def test_a_build_may_wait_for_another(tmp_path: Path):
    own = Build(WorldScenes(6, 0, 16), tmp_path / "out")
    order = []

    def wait_and_build() -> None:
        with claimed_folder(own, wait=True):
            order.append("second")

    with claimed_folder(own):
        second = threading.Thread(target=wait_and_build)
        second.start()
        second.join(0.3)
        order.append("first")
    second.join(30)
    assert order == ["first", "second"]


def test_a_folder_is_finished_with_its_manifest(tmp_path: Path):
    own = Build(WorldScenes(6, 0, 16), tmp_path / "out")
    assert not is_finished(own)
    with claimed_folder(own):
        assert not is_finished(own)
        run_build(own)
    assert is_finished(own)
    with pytest.raises(FileExistsError, match=r"another build \(seed: 0 there, 1 now\)"):
        is_finished(Build(WorldScenes(6, 1, 16), tmp_path / "out"))
