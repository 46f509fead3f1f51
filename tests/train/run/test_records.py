import csv
from types import SimpleNamespace
from typing import Any

import pytest
from torch import distributed

import train.run.records
from train.run.records import MetricsFile, Recorder, read_metrics
from train.run.shares import Share


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_a_continued_run_cuts_what_came_after_its_checkpoint(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv")
    file.cut_after(0)
    for step in (1, 2, 3):
        file.append(step, {"loss": step / 10, "psnr": 30.0})
    with file.path.open("a") as torn:
        torn.write("4,lo")
    file.cut_after(2)
    file.append(3, {"loss": 0.25})
    assert rows(file.path) == [
        ["step", "metric", "value"],
        *(["1", "loss", "0.1"], ["1", "psnr", "30"], ["2", "loss", "0.2"], ["2", "psnr", "30"]),
        ["3", "loss", "0.25"],
    ]


def test_what_a_full_disk_had_no_place_for_comes_later(tmp_path, monkeypatch, capsys):
    file = MetricsFile(tmp_path / "metrics.csv")
    file.cut_after(0)
    file.append(1, {"loss": 0.5})

    class Full:
        def __init__(self, target, **_):
            self.target = target

        def writerows(self, _):
            self.target.write("2,lo")
            self.target.flush()
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(train.run.records.csv, "writer", Full)
        file.append(2, {"loss": 0.25})
        file.append(3, {"loss": 0.125})
    assert rows(file.path) == [["step", "metric", "value"], ["1", "loss", "0.5"]]
    assert "NOT LOGGED at step 3" in capsys.readouterr().out
    file.append(4, {"loss": 1.0})
    values = [["1", "loss", "0.5"], ["2", "loss", "0.25"], ["3", "loss", "0.125"], ["4", "loss", "1"]]
    assert rows(file.path)[1:] == values


def test_what_a_power_cut_left_is_passed_over(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv")
    file.cut_after(0)
    file.append(1, {"loss": 0.5})
    with file.path.open("ab") as torn:
        torn.write(bytes(40) + b"\n5,loss\n\xff\xfe,loss,0.3\n2,loss,0.25\n")
    assert read_metrics(file.path) == {"loss": [(1, 0.5), (2, 0.25)]}
    file.cut_after(9)
    assert rows(file.path)[1:] == [["1", "loss", "0.5"], ["2", "loss", "0.25"]]


def test_a_disk_that_is_full_at_the_start_costs_lines_not_the_run(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    file = MetricsFile(tmp_path / "metrics.csv")
    with monkeypatch.context() as patch:
        patch.setattr(train.run.records, "atomic_path", full)
        file.cut_after(0)
    assert "NOT CUT" in capsys.readouterr().out
    file.append(1, {"loss": 0.5})
    assert rows(file.path) == [["step", "metric", "value"], ["1", "loss", "0.5"]]


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
        found[:] = [own, Share(1.0, 2.0, 20, records[0]), Share(3.0, 6.0, 300, records[1])]

    monkeypatch.setattr(distributed, "all_gather_object", others)
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(train.run.records, "time", SimpleNamespace(monotonic=lambda: now.seconds))
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
