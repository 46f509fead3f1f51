import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Reads with two workers, and says who they are; its own handler stands for that of a training.
READER = """
import signal, sys
from multiprocessing import active_children
from data.shards.dataset import ShardLoader
from data.shards.pictures import SquarePicture

if __name__ == "__main__":
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    loader = ShardLoader(sys.argv[1], SquarePicture(8), 2, rank=0, world_size=1, num_workers=2,
                         start_method=sys.argv[2], prefetch=2, batches=10_000)
    batches = iter(loader)
    next(batches)
    print(*(child.pid for child in active_children()), flush=True)
    while not told:
        next(batches)
    for _ in range(8):  # more than lay ready
        next(batches)
    print("read on", flush=True)
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="needs sigwaitinfo")
@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
def test_readers_outlive_a_sigterm_to_the_group_and_end_with_their_parent(
    make_shards: Callable[..., Path], tmp_path: Path, start_method: str
):
    script = tmp_path / "reader.py"
    script.write_text(READER)
    command = [sys.executable, str(script), str(make_shards([5, 9, 7])), start_method]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        workers = [int(pid) for pid in process.stdout.readline().split()]
        os.killpg(process.pid, signal.SIGTERM)
        said, error = process.communicate(timeout=60)
    assert (said, process.returncode) == ("read on\n", 0), error
    assert len(workers) == 2
    deadline = time.monotonic() + 10
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, workers))
