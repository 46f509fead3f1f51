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
