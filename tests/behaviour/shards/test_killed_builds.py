"""A build that is killed and run again writes what an undisturbed one does; so do several processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from data import build
from tests.fixtures.shards import file_digests

WORLD = ["--count", "60", "--samples-per-shard", "7", "--size", "16"]


@pytest.mark.heavy
def test_workers_write_the_same_bytes(tmp_path: Path):
    assert build.main(["world", str(tmp_path / "one"), *WORLD]) == 0
    assert build.main(["world", str(tmp_path / "many"), *WORLD, "--workers", "2"]) == 0
    assert file_digests(tmp_path / "one") == file_digests(tmp_path / "many")


def test_resume_keeps_what_is_whole_and_repairs_what_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    assert build.main(["world", str(out), *WORLD]) == 0
    before, times = file_digests(out), {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    os.truncate(out / "00002.tar", 5000)
    (out / "00004.index.json").unlink()
    (out / "00005.tar").unlink()
    (out / ".00006.tar.1234.partial").write_bytes(b"left behind")
    capsys.readouterr()
    assert build.main(["world", str(out), *WORLD]) == 0
    assert "9 shards, 0.2 MB, 6 of them from an earlier run" in capsys.readouterr().out
    assert file_digests(out) == before
    kept = [name for name, stamp in times.items() if (out / name).stat().st_mtime_ns == stamp]
    assert len(kept) == 6


@pytest.mark.heavy
def test_killed_in_mid_write_and_run_again(tmp_path: Path):
    out, size = tmp_path / "killed", ["--count", "200", "--samples-per-shard", "20"]
    kill_after_first_shard(["world", str(out), *size], out)
    assert build.main(["world", str(out), *size]) == 0
    assert build.main(["world", str(tmp_path / "whole"), *size]) == 0
    assert file_digests(out) == file_digests(tmp_path / "whole")


@pytest.mark.slow  # four processes are started, which takes longer than all they do
def test_killed_with_workers_and_run_again(tmp_path: Path):
    out, size = tmp_path / "killed", ["--count", "200", "--samples-per-shard", "20"]
    workers = kill_after_first_shard(["world", str(out), *size, "--workers", "2"], out)
    assert len(workers) >= 2
    deadline = time.monotonic() + 60
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < deadline, "workers must end with their parent"
        time.sleep(0.01)
    assert build.main(["world", str(out), *size, "--workers", "2"]) == 0
    assert build.main(["world", str(tmp_path / "whole"), *size]) == 0
    assert file_digests(out) == file_digests(tmp_path / "whole")


def kill_after_first_shard(arguments: list[str], out: Path) -> list[str]:
    """Kill a build with signal 9 in mid-write; return the numbers of its child processes."""
    silent: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    root = Path(__file__).parents[3]
    process = subprocess.Popen([sys.executable, "-m", "data.build", *arguments], cwd=root, **silent)
    while not list(out.glob("*.tar")) and process.poll() is None:
        time.sleep(0.002)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (out / "build.json").exists(), "killed before the end"
    assert not (out / "manifest.json").exists()
    return children


def is_running(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
