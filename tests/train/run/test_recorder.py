from types import SimpleNamespace
from typing import Any

import pytest
from torch import distributed

import train.run.recorder
from train.run.metrics_file import read_metrics
from train.run.recorder import ProcessFigures, Recorder


@pytest.fixture
def trainer() -> Any:
    """The trainer of the first of three processes."""
    loader = SimpleNamespace(loader=SimpleNamespace(skips=SimpleNamespace(skipped=0)))
    state = {"is_global_zero": True, "global_rank": 0, "global_step": 0, "max_steps": 9, "should_stop": False}
    return SimpleNamespace(**state, world_size=3, loggers=[], train_dataloader=loader)


def test_a_line_is_that_of_all_processes_where_they_exchange(trainer, tmp_path, monkeypatch):
    """Three processes, of which one drew nothing of level 2; at step 3, told to stop, the first is by itself."""

    def others(found: list, own: Any) -> None:
        records = [{"loss": (8.0, 2), "loss_level_2": (5.0, 1)}, {"loss": (10.0, 2), "loss_level_2": (9.0, 2)}]
        found[:] = [own, ProcessFigures(1.0, 2.0, 20, records[0]), ProcessFigures(3.0, 6.0, 300, records[1])]

    monkeypatch.setattr(distributed, "all_gather_object", others)
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(train.run.recorder, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    stage = SimpleNamespace(take_records=lambda: {"loss": (6.0, 2)}, guard=SimpleNamespace(skipped=0))
    recorder = Recorder(tmp_path, every=2, batch_size=1)
    recorder.on_start(trainer, stage)
    for step, skipped in ((1, 4), (2, 4), (3, 7)):
        now.seconds += 4.0
        recorder.waited, recorder.alone = 2.0, 4.0
        trainer.train_dataloader.loader.skips.skipped = skipped
        trainer.should_stop = step == 3
        recorder.on_step(trainer, stage, step)
    found = {name: dict(values) for name, values in read_metrics(tmp_path / "metrics.csv").items()}
    assert found["loss"] == {2: 24 / 6, 3: 3.0}
    assert found["loss_level_2"] == {2: 4.66667}  # six digits are written
    assert found["data_wait"] == {2: 2.0 / 8, 3: 0.5}
    assert found["skipped_samples"] == {2: 324, 3: 327}
    assert found["slowest_process"] == {2: 2}
    assert found["slowest_process_times"] == {2: 2.0}


def test_skipped_samples_are_counted_over_all_starts(trainer, tmp_path):
    trainer.world_size = 1
    stage = SimpleNamespace(take_records=dict, guard=SimpleNamespace(skipped=0))
    checkpoint: Any = {}
    for skipped in (4, 30):
        trainer.train_dataloader.loader.skips.skipped = skipped
        recorder = Recorder(tmp_path, every=2, batch_size=1)
        recorder.on_load_checkpoint(trainer, stage, checkpoint)
        recorder.on_save_checkpoint(trainer, stage, checkpoint)
    assert checkpoint == {"skipped_samples": 34}


def test_a_line_has_fixed_columns_and_the_time_left(trainer, tmp_path, monkeypatch, capsys):
    """Ten steps take 1000 s; one line lacks a level. Ninety steps are left of a hundred, after one start at step 0."""
    trainer.max_steps = 100
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(train.run.recorder, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    recorder = Recorder(tmp_path, every=1, batch_size=1)
    recorder.on_start(trainer, SimpleNamespace(guard=SimpleNamespace()))
    full = {"learning_rate": 1e-3, "loss_level_1": 123456.0, "loss": 0.5, "data_wait": 0.25}
    for step, figures in ((9, full), (10, {"data_wait": 1.0, "loss": 12345.678, "learning_rate": 2.5e-05})):
        now.seconds = step * 100.0
        recorder.write(trainer, step, dict(figures))
        recorder.write(trainer, step, {"held_out_loss": 1.034})
    now.seconds = 10000.0
    recorder.write(trainer, 100, full)
    first, evaluated, second, _, last = capsys.readouterr().out.splitlines()
    assert first.startswith("step 9/100    left 2:31:40    loss 0.5         loss_level_1 1.235e+05   data_wait 0.25")
    assert evaluated == "step 9/100    left 2:31:40    held_out_loss 1.034"
    assert second.startswith("step 10/100   left 2:30:00    loss 1.235e+04   loss_level_1 -  ")
    assert last.startswith("step 100/100  left 0:00:00  ")
    for name in full:
        assert first.index(name) == second.index(name) == last.index(name)


def test_time_left_counts_the_steps_of_this_start_alone(trainer, tmp_path, monkeypatch, capsys):
    trainer.max_steps, trainer.global_step = 400, 100
    now = SimpleNamespace(seconds=50.0)
    monkeypatch.setattr(train.run.recorder, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    recorder = Recorder(tmp_path, every=1, batch_size=1)
    recorder.on_start(trainer, SimpleNamespace(guard=SimpleNamespace()))
    now.seconds = 350.0
    recorder.write(trainer, 200, {"loss": 1.0})
    assert capsys.readouterr().out == "step 200/400  left 0:10:00    loss 1\n"


def test_loggers_draw_losses_that_are_weighted_apart_from_those_that_are_not(trainer, tmp_path):
    seen: dict[str, float] = {}
    trainer.loggers = [SimpleNamespace(log_metrics=lambda figures, step: seen.update(figures))]
    recorder = Recorder(tmp_path, every=1, batch_size=1)
    recorder.write(trainer, 1, {"loss": 1.0, "loss_level_1": 2.0, "data_wait": 3.0})
    recorder.write(trainer, 1, {"held_out_loss": 4.0, "gap_none": 5.0})
    weighted = {"weighted/loss": 1.0}
    assert seen == weighted | {
        "unweighted/loss_level_1": 2.0,
        "unweighted/held_out_loss": 4.0,
        "data_wait": 3.0,
        "gap_none": 5.0,
    }
    assert set(read_metrics(tmp_path / "metrics.csv")) == {
        "loss",
        "loss_level_1",
        "data_wait",
        "held_out_loss",
        "gap_none",
    }
