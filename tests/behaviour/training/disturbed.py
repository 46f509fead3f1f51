"""A training that is disturbed at random ends with the bits of one that is not.

`python -m tests.behaviour.training.disturbed --steps 1000 --seed 0` trains the world's SeeCoder twice: once in peace,
and once with everything that happens to long runs, at steps drawn from the seed. Each start of the disturbed run begins
without fetched shards and with a dead server, and lives some steps until it is killed (`kill -9`) or told to stop
(SIGTERM, Ctrl-C), somewhere in a step. Meanwhile, several times and without a restart, its disk is full, its shards'
handles are stale, or its server is dead again for a while. One step has a NaN, in both runs. The server is a folder
behind a replaced `open_url`, so that its deaths cost no network. With `--buckets` pictures have many shapes and sizes.
"""

import argparse
import errno
import io
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import urllib.error
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import yaml

from data.build import main as build_shards
from data.shards.remote import fetcher
from seecoder.export.run_folder import list_checkpoints
from tests.behaviour.training.same_training import assert_equal
from tests.fixtures.shards import save_image
from train.cli import main as train
from train.stages.seecoder import SeeCoderStage

ROOT = Path(__file__).parents[3]
SERVER = "https://shards.example"
ENDS = {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}
FAULTS = ("full disk", "stale handles", "dead server")
Event = tuple[int, str, float]  # after how many steps, what, seconds


class Answer(io.BytesIO):
    """A server's answer, whose length it does not say."""

    length = None


class Weather:
    """What is broken just now: a fault comes after a step, lasts from where it is first met, and goes by the clock.

    Args:
        plan: Faults and, last, the end: after so many steps of this start, which, and for how many seconds; the end
            comes so many seconds after its step has begun.
        log: Where it is noted what came.
    """

    def __init__(self, plan: list[Event], log: Path) -> None:
        self.plan, self.log = plan, log
        self.steps = 0
        self.end: threading.Timer | None = None
        self.waiting = {"dead server": 0.3} if plan else {}  # faults that were not met yet, and how long they will last
        self.ends: dict[str, float] = {}

    def begin_step(self) -> None:
        """Let what is planned for this step happen."""
        while self.plan and self.plan[0][0] <= self.steps:
            _, fault, seconds = self.plan.pop(0)
            if fault in ENDS:
                self.end = threading.Timer(seconds, self._end, [fault])
                self.end.start()
            else:
                self.waiting[fault] = seconds
        self.steps += 1

    def _end(self, fault: str) -> None:
        note(self.log, "ends", fault)
        os.kill(os.getpid(), ENDS[fault])

    def raise_if(self, fault: str, error: Exception) -> None:
        """Fail if the fault is there."""
        seconds = self.waiting.pop(fault, None)
        if seconds is not None:
            self.ends[fault] = time.monotonic() + seconds
            note(self.log, "meets", fault)
        if time.monotonic() < self.ends.get(fault, 0.0):
            raise error


@contextmanager
def broken_by(weather: Weather, shards: Path, nan_step: int) -> Iterator[None]:
    """Replace disk, reads and server by such that fail with the weather; spoil one step."""
    sync, read, loss = os.fsync, os.pread, SeeCoderStage.loss

    def fsync(file: int) -> None:
        weather.raise_if("full disk", OSError(errno.ENOSPC, "No space left on device"))
        sync(file)

    def pread(*place: int) -> bytes:
        weather.raise_if("stale handles", OSError(errno.ESTALE, "Stale file handle"))
        return read(*place)

    def open_url(url: str, timeout: float) -> Any:
        weather.raise_if("dead server", urllib.error.URLError(ConnectionRefusedError(111, "Connection refused")))
        return Answer((shards / url.removeprefix(f"{SERVER}/")).read_bytes())

    def spoilt(stage: Any, batch: Any) -> torch.Tensor:
        weather.begin_step()
        found = loss(stage, batch)
        return found * float("nan") if stage.global_step == nan_step else found

    with (
        patch.object(os, "fsync", fsync),
        patch.object(os, "pread", pread),
        patch.object(fetcher, "open_url", open_url),
        patch.object(fetcher, "time", SimpleNamespace(**vars(time) | {"sleep": hurry})),
        patch.object(SeeCoderStage, "loss", spoilt),
    ):
        yield


def hurry(seconds: float) -> None:
    """Wait for a server, but not for long."""
    time.sleep(min(seconds, 0.5))


def attempt(config: dict, shards: Path, nan_step: int, plan: list[Event], log: Path) -> None:
    """One start of the run, which meets the faults of `plan`."""
    weather = Weather(plan, log)
    shutil.rmtree(config["data"]["init_args"]["cache"], ignore_errors=True)

    path = log.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    torch.set_num_threads(1)
    with broken_by(weather, shards, nan_step), log.open("a") as out, redirect_stdout(out):
        code = train(["fit", "--config", str(path)])
        if weather.end is not None:  # the run was over before
            weather.end.cancel()
    os._exit(code)


def note(log: Path, *words: object) -> None:
    """Write a line that is on the disk when the process dies after it."""
    with log.open("a") as file:
        print("##", *words, file=file)


def run_disturbed(
    settings: Callable[..., dict], shards: Path, folder: Path, *, steps: int, seed: int, longest: int
) -> Counter[str]:
    """Train in peace and disturbed, and compare.

    Args:
        settings: Makes a configuration from changes by dotted names.
        shards: What the server has.
        folder: Both runs go there, as `peace` and `storm`.
        steps: Optimizer steps.
        seed: Of what comes when.
        longest: Steps that a start of the disturbed run lives at most.

    Returns:
        How often each thing happened.

    Raises:
        AssertionError: The runs differ, or one of them failed.
    """
    draw, context = random.Random(seed), multiprocessing.get_context("fork")
    nan_step = draw.randrange(steps // 4, steps // 2)

    def start(name: str, plan: list[Event]) -> int:
        config = settings(
            **{
                "run.folder": str(folder / name),
                "run.max_steps": steps,
                "data.init_args.shards": SERVER,
                "data.init_args.cache": str(folder / f"{name}-cache"),
            }
        )
        process = context.Process(target=attempt, args=(config, shards, nan_step, plan, folder / f"{name}.log"))
        process.start()
        process.join()
        assert process.exitcode is not None
        return process.exitcode

    assert start("peace", []) == 0, (folder / "peace.log").read_text()[-2000:]
    happened: Counter[str] = Counter()
    for _ in range(steps):
        life = draw.randint(1, longest)
        faults = [(draw.randint(0, life), draw.choice(FAULTS), draw.uniform(0.1, 0.3)) for _ in range(1 + life // 10)]
        code = start("storm", [*sorted(faults), (life, draw.choice([*ENDS]), draw.uniform(0, 0.5))])
        happened[f"exit {code}"] += 1
        if code == 0 and list_checkpoints(folder / "storm")[0][0] == steps:  # the disk may have been full for the last
            break
        assert code in (0, 143, 130, -signal.SIGKILL), (folder / "storm.log").read_text()[-2000:]
    log = (folder / "storm.log").read_text().splitlines()
    happened.update(line[3:] for line in log if line.startswith("## "))
    assert_equal(*(load(list_checkpoints(folder / name)[0][1]) for name in ("peace", "storm")))
    return happened


def load(path: Path) -> dict:
    """A checkpoint."""
    return torch.load(path, map_location="cpu", weights_only=True)


def world_settings(**changes: Any) -> dict:
    """The world's SeeCoder, small enough for a thousand steps in minutes."""
    config = yaml.safe_load((ROOT / "configs" / "world_seecoder.yaml").read_text())
    tiny = {
        "run.threads": 1,
        "run.precision": "32-true",
        "run.checkpoint_every": 20,
        "run.evaluate_every": 0,
        "stage.init_args.preview": None,
        "stage.init_args.export_encoder": False,
        "data.init_args.batch_size": 2,
        "data.init_args.held_out_world": False,
    }
    for dotted, value in (tiny | changes).items():
        *path, last = dotted.split(".")
        place = config
        for name in path:
            place = place[name]
        place[last] = value
    return config


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=int, default=100, help="steps that a start lives at most")
    parser.add_argument("--buckets", action="store_true", help="pictures of all shapes, in buckets")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, settings = ["world", str(folder / "shards"), "--count", "256", "--size", "64"], world_settings
        if arguments.buckets:
            for number, (height, width) in enumerate([(50, 90), (90, 50), (64, 64), (110, 140)] * 64):
                save_image(folder / "pictures" / f"{number:03d}.png", height, width, seed=number)
            source = ["folder", str(folder / "pictures"), str(folder / "shards")]
            buckets = {"group": 4, "resolutions": [64, 96], "step": 16}
            settings = partial(world_settings, **{"data.init_args.buckets": buckets})
        assert build_shards([*source, "--samples-per-shard", "4"]) == 0
        began = time.monotonic()
        happened = run_disturbed(
            settings,
            folder / "shards",
            folder,
            steps=arguments.steps,
            seed=arguments.seed,
            longest=arguments.longest,
        )
    for what, count in sorted(happened.items()):
        print(f"{count:5} {what}")
    print(f"{arguments.steps} steps in {time.monotonic() - began:.0f} s: the same bits")
    return 0


if __name__ == "__main__":
    sys.exit(main())
