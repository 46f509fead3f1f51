import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.behaviour.processes import outlive

ROOT = Path(__file__).parents[4]

# Reads with two workers, and says who they are; its own handlers stand for those of a training.
READER = """
import signal, sys
from multiprocessing import active_children
from data.shards.reading.square_image import SquareImage
from tests.fixtures.shards import make_loader

if __name__ == "__main__":
    told = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: told.append(1))
    loader = make_loader(sys.argv[1], SquareImage(8), 2, rank=0, world_size=1, num_workers=2,
                         start_method=sys.argv[2], batches=10_000)
    batches = iter(loader)
    next(batches)
    print(*(child.pid for child in active_children()), flush=True)
    while len(told) < 2:
        next(batches)
    for _ in range(8):  # more than lay ready
        next(batches)
    print("read on", flush=True)
"""


@contextmanager
def reading(shards: Path, script: Path, start_method: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process that reads, in a group of its own, and its two workers."""
    script.write_text(READER)
    with subprocess.Popen(
        [sys.executable, str(script), str(shards), start_method], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        yield process, workers


@pytest.mark.heavy
@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="needs sigwaitinfo")
@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
def test_readers_outlive_signals_to_the_group_and_end_with_their_parent(
    make_shards: Callable[..., Path], tmp_path: Path, start_method: str
):
    with reading(make_shards([5, 9, 7]), tmp_path / "reader.py", start_method) as (process, workers):
        os.killpg(process.pid, signal.SIGUSR1)
        os.killpg(process.pid, signal.SIGTERM)
        said, error = process.communicate(timeout=60)
    assert (said, process.returncode) == ("read on\n", 0), error
    assert outlive(workers, 10) == []


@pytest.mark.heavy
@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_readers_end_when_their_parent_is_killed(make_shards: Callable[..., Path], tmp_path: Path, start_method: str):
    with reading(make_shards([5, 9, 7]), tmp_path / "reader.py", start_method) as (process, workers):
        process.kill()
    left = outlive(workers, 10)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []
