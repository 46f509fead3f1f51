import logging
import re
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train.run.evaluation import Evaluation
from train.run.metrics_file import read_metrics
from train.run.provenance import Provenance
from train.run.recorder import DataWait, Recorder
from train.run.termination import Termination
from train.run.trainer import build_trainer, extra_loggers
from train.settings import RunSettings


def test_the_parts_act_in_their_order_and_waiting_is_measured_last(tmp_path):
    trainer, termination = build_trainer(RunSettings(str(tmp_path), 3, accelerator="cpu"), 4, Provenance(tmp_path, {}))
    kinds = [type(callback) for callback in trainer.callbacks]
    order = [kinds.index(kind) for kind in (Termination, Recorder, Evaluation, DataWait)]
    assert order == sorted(order)
    assert kinds[-1] is DataWait
    assert trainer.callbacks[kinds.index(Termination)] is termination
    assert trainer.loggers == []


def test_accumulation_follows_from_the_global_batch(tmp_path):
    run = RunSettings(str(tmp_path), 3, accelerator="cpu", global_batch=24, threads=torch.get_num_threads())
    trainer, _ = build_trainer(run, 4, Provenance(tmp_path, {}))
    assert trainer.accumulate_grad_batches == 6
    with pytest.raises(ValueError, match="`global_batch`=24 must be a multiple of 5"):
        build_trainer(run, 5, Provenance(tmp_path, {}))


def test_other_loggers_are_made_where_they_are_asked_for(tmp_path):
    (logger,) = extra_loggers(RunSettings(str(tmp_path), 3, loggers=("tensorboard",)))
    assert type(logger).__name__ == "TensorBoardLogger"
    assert extra_loggers(RunSettings(str(tmp_path), 3)) == []


def test_tensorboard_has_one_folder_over_all_starts(tmp_path):
    run = RunSettings(str(tmp_path), 3, loggers=("tensorboard",))
    for step in (1, 2):
        (logger,) = extra_loggers(run)
        logger.log_metrics({"weighted/loss": 0.5}, step)
        logger.finalize("success")
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]
    assert len(list((tmp_path / "tensorboard").glob("events.*"))) == 2


@pytest.mark.parametrize("failing", [("write", "flush"), ("flush",)])
def test_a_full_disk_silences_tensorboard_and_ends_no_run(tmp_path, monkeypatch, capsys, failing):
    (logger,) = extra_loggers(RunSettings(str(tmp_path), 3, loggers=("tensorboard",)))
    trainer: Any = SimpleNamespace(is_global_zero=True, max_steps=3, loggers=[logger])
    module: Any = None
    recorder = Recorder(tmp_path, 1, 4)
    recorder.write(trainer, 1, {"loss": 0.5})

    def full(*_: Any) -> None:  # what both say from then on when the writing thread has met a full disk
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        for name in failing:
            patch.setattr(f"tensorboard.summary.writer.event_file_writer._AsyncWriter.{name}", full)
        recorder.write(trainer, 2, {"loss": 0.25})
        recorder.write(trainer, 3, {"loss": 0.125})
        recorder.teardown(trainer, module, "fit")
    logger.experiment.close()
    assert trainer.loggers == []
    assert capsys.readouterr().out.count("TensorBoardLogger STOPS: [Errno 28]") == 1
    assert read_metrics(tmp_path / "metrics.csv") == {"loss": [(1, 0.5), (2, 0.25), (3, 0.125)]}


@pytest.fixture
def begun(monkeypatch) -> list[dict[str, Any]]:
    """What a stand-in for W&B was told at each start; the package is not installed here."""
    told: list[dict[str, Any]] = []

    def module(name: str, **members: Any) -> None:
        made = ModuleType(name)
        made.__spec__ = ModuleSpec(name, None)
        vars(made).update(members)
        monkeypatch.setitem(sys.modules, name, made)

    def init(**options: Any) -> Any:
        told.append(options | {"argv": [*sys.argv]})
        return SimpleNamespace(id=options["id"], log=lambda *_: None)

    module("wandb", run=None, init=init)
    module("wandb.sdk")
    module("wandb.sdk.lib", RunDisabled=type("RunDisabled", (), {}))
    module("wandb.wandb_run", Run=type("Run", (), {}))
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    return told


def test_a_continued_run_goes_on_in_its_run_at_wandb_and_another_run_does_not(tmp_path, begun):
    for name in ("a", "a", "b"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (logger,) = extra_loggers(RunSettings(str(folder), 3, loggers=("wandb",)))
        logger.log_metrics({"weighted/loss": 0.5}, 1)
    ids = [told["id"] for told in begun]
    assert ids[0] == ids[1] != ids[2]
    assert all(len(found) == 16 for found in ids)
    assert {told["resume"] for told in begun} == {"allow"}
    assert (tmp_path / "a" / "wandb_id.txt").read_text() == ids[0]


def test_wandb_is_shown_no_secret_of_the_command_line_and_further_processes_are(tmp_path, begun, monkeypatch):
    given = ["train", "fit", "--data.init_args.shards=https://me:S3CRETWORD@host/a?token=T0KENWORD"]
    monkeypatch.setattr(sys, "argv", [*given])
    (logger,) = extra_loggers(RunSettings(str(tmp_path), 3, loggers=("wandb",)))
    assert sys.argv == given, "Lightning starts the other processes with these"
    logger.log_metrics({"weighted/loss": 0.5}, 1)
    assert begun[0]["argv"] == ["train", "fit", "--data.init_args.shards=https://host/a"]


def test_tensorboard_shows_each_step_of_a_continued_run_once(tmp_path):
    run = RunSettings(str(tmp_path), 9, loggers=("tensorboard",))
    for start, last, value in ((0, 5, 1.0), (3, 6, 2.0)):  # killed after step 5, the checkpoint was of step 3
        (logger,) = extra_loggers(run, start)
        for step in range(start + 1, last + 1):
            logger.log_metrics({"weighted/loss": value}, step)
        logger.finalize("success")
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = [(event.step, event.value) for event in board.Scalars("weighted/loss")]
    assert shown == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0)]


def test_callbacks_of_the_user_come_before_waiting_is_measured(tmp_path):
    own = Callback()
    run = RunSettings(str(tmp_path), 3, accelerator="cpu", callbacks=[own])
    trainer, _ = build_trainer(run, 4, Provenance(tmp_path, {}))
    assert trainer.callbacks[-2] is own


@pytest.mark.parametrize(("name", "kind"), [("simple", "SimpleProfiler"), ("pytorch", "PyTorchProfiler")])
def test_a_profiler_is_lightnings_and_is_heard(tmp_path, name, kind):
    run = RunSettings(str(tmp_path), 3, accelerator="cpu", profiler=name)
    trainer, _ = build_trainer(run, 4, Provenance(tmp_path, {}))
    assert type(trainer.profiler).__name__ == kind
    assert logging.getLogger("lightning.pytorch.profilers.profiler").isEnabledFor(logging.INFO)
    assert not logging.getLogger("lightning.pytorch.trainer").isEnabledFor(logging.INFO)


@pytest.mark.heavy
def test_the_table_of_a_profiler_comes_out_at_the_end(settings, fit):
    told: list[str] = []
    handler, log = logging.Handler(), logging.getLogger("lightning.pytorch.profilers.profiler")
    handler.emit = lambda record: told.append(record.getMessage())
    log.addHandler(handler)
    try:
        assert fit(settings(**{"run.max_steps": 1, "run.profiler": "simple"})) == 0
    finally:
        log.removeHandler(handler)
    (table,) = told
    assert "Profiler Report" in table
    rows = {line.split("|")[1].strip(): line for line in table.splitlines() if line.count("|") > 3}
    assert re.search(r"\b1\s*\|", rows["run_training_batch"]), "one batch is in it"
