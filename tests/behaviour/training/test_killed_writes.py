"""Killed for good (SIGKILL) at chosen bytes and between chosen renames of a checkpoint, a run loses nothing."""

import multiprocessing
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from seecoder.export.run_folder import list_checkpoints, newest_checkpoint
from tests.behaviour.processes import outlive
from tests.behaviour.training.killing import arrange, files_of
from tests.behaviour.training.noted_order import assert_same_order
from tests.behaviour.training.same_training import assert_equal

PRELOADED = ["lightning.pytorch", "train.cli", "train.stages.seecoder", "train.sources.shard_data", "train.run.trainer"]
LAST = 6
PARTIAL = ".step-*.partial"


def _train(arguments: list[str], moment: tuple, log: Path, readers: str) -> None:
    """In a process of its own: `python -m train`, which dies at that moment; its readers are started so."""
    multiprocessing.set_start_method(readers, force=True)
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    if moment:
        arrange(*moment)
    sys.argv = ["train", *arguments]
    runpy.run_module("train", run_name="__main__", alter_sys=True)


@pytest.fixture
def train(tmp_path):
    """Run `python -m train fit` on a configuration in a process of its own, started from one that has its imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)

    def run(config: dict, *moment, readers: str = "fork") -> int | None:
        path, log = tmp_path / "config.yaml", tmp_path / "log.txt"
        path.write_text(yaml.safe_dump(config))
        process = context.Process(target=_train, args=(["fit", "--config", str(path)], moment, log, readers))
        process.start()
        process.join(240)
        if process.exitcode not in (0, -signal.SIGKILL):
            process.kill()
            pytest.fail(f"{process.exitcode}: {log.read_text()[-3000:]}")
        return process.exitcode

    return run


@pytest.fixture
def steady(settings):
    """A configuration that writes into that folder."""

    def make(folder: Path, **changes) -> dict:
        plain = {"data.init_args.held_out": 0, "data.init_args.held_out_world": False}
        own = {"run.max_steps": LAST, "run.threads": 1, "run.folder": str(folder)}
        config = settings(**{**plain, **own, **changes})
        config["data"]["class_path"] = "tests.behaviour.training.noted_order.NotedPictures"
        return config

    return make


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("uninterrupted")


@pytest.fixture
def whole(shared, steady, fit) -> Path:
    """Folder of the uninterrupted run; it runs once."""
    folder = shared / "run"
    if not folder.exists():
        assert fit(steady(folder)) == 0
    return folder


def assert_nothing_lost(folder: Path, whole: Path, load) -> None:
    """The run went on to the same end, and nothing tells of the kill."""
    name = f"step-{LAST:08d}.ckpt"
    assert newest_checkpoint(folder) == folder / name
    assert_equal(load(whole / name), load(folder / name))
    assert_same_order(folder, whole, LAST)
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}


def slow(case: tuple[Any, ...]) -> Any:
    """A case of ten seconds whose like is tested anyway."""
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.heavy
@pytest.mark.parametrize(("step", "place"), [(4, 0.5), *(slow(case) for case in ((2, 0.5), (4, 0), (4, -1)))])
def test_killed_within_the_file(train, steady, whole, fit, load, tmp_path, step, place):
    folder = tmp_path / "killed"
    assert train(steady(folder), "write", step, place) == -signal.SIGKILL
    (partial,) = folder.glob(PARTIAL)
    size = (whole / f"step-{step:08d}.ckpt").stat().st_size
    assert partial.stat().st_size == (size - 1 if place == -1 else int(place * size))
    assert [found for found, _ in list_checkpoints(folder)] == list(range(step - 2, 0, -2))
    assert fit(steady(folder)) == 0
    assert_nothing_lost(folder, whole, load)


# Before or after which rename, and what is there then; what has no name yet is partial.
RENAMES = {
    "before the first": ("ckpt.sha256", False, {".ckpt", ".ckpt.sha256"}),
    "between": ("ckpt", False, {".ckpt", "ckpt.sha256"}),
    "after the last": ("ckpt", True, {"ckpt", "ckpt.sha256"}),
}


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("step", "when"),
    [(2, "between"), *(slow(case) for case in ((2, "before the first"), (4, "between"), (4, "after the last")))],
)
def test_killed_at_a_rename(train, steady, whole, fit, load, tmp_path, step, when):
    folder = tmp_path / "killed"
    name, after, there = RENAMES[when]
    assert train(steady(folder), "rename", step, name, after) == -signal.SIGKILL
    assert files_of(folder, step) == there
    newest = step if when == "after the last" else step - 2
    assert newest_checkpoint(folder) == (folder / f"step-{newest:08d}.ckpt" if newest else None)
    assert fit(steady(folder)) == 0
    assert_nothing_lost(folder, whole, load)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "readers"),
    [(("step", 3), "fork"), (("write", 4, 0.5), "fork"), (("step", 3), "forkserver")],  # Python 3.14's own choice
)
def test_killed_with_readers_which_do_not_outlive_it(train, steady, whole, load, tmp_path, moment, readers):
    folder = tmp_path / "killed"
    config = steady(folder, **{"data.init_args.num_workers": 2})
    assert train(config, *moment, readers=readers) == -signal.SIGKILL
    (line,) = (line for line in (tmp_path / "log.txt").read_text().splitlines() if line.startswith("leaves"))
    left = [int(word) for word in line.split()[1:]]
    assert len(left) == 2
    assert outlive(left, 30) == []
    assert train(config, readers=readers) == 0
    assert_nothing_lost(folder, whole, load)
