from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.io import decode_image, write_png

from train.run.callbacks import CheckpointSteps
from train.run.evaluation import Evaluation
from train.run.metrics_file import read_metrics
from train.run.recorder import Recorder


class Stage:
    """Counts what is asked of it, and says whether averages were in place."""

    def __init__(self) -> None:
        self.guard = SimpleNamespace(skipped_in_a_row=0)
        self.averaged = False
        self.exported: list[bool] = []

    @contextmanager
    def evaluating(self):
        self.averaged = True
        yield
        self.averaged = False

    def evaluate(self) -> dict[str, float]:
        return {"held_out_loss": 1.0 if self.averaged else -1.0}

    def export(self, folder: Path) -> dict[str, float]:
        self.exported.append(self.averaged)
        return {"preview_count": 0.5}


def run(
    folder: Path, stage: Any, *, every: int = 2, rank: int = 0, signal: bool = False, loggers: Any = ()
) -> dict[str, list]:
    trainer: Any = SimpleNamespace(is_global_zero=rank == 0, max_steps=10, should_stop=False, loggers=loggers)
    recorder = Recorder(folder, every=1, batch_size=1)
    termination: Any = SimpleNamespace(stopped_by_signal=signal)
    evaluation = Evaluation(folder, recorder, termination, every, CheckpointSteps(every=5))
    for step in range(1, 11):
        evaluation.on_step(trainer, stage, step)
    path = folder / "metrics.csv"
    return read_metrics(path) if path.is_file() else {}


def test_it_evaluates_every_few_steps_and_exports_with_checkpoints_by_the_averages(tmp_path):
    stage = Stage()
    found = run(tmp_path, stage)
    assert found["held_out_loss"] == [(step, 1.0) for step in (2, 4, 5, 6, 8, 10)]
    assert found["preview_count"] == [(5, 0.5), (10, 0.5)]
    assert stage.exported == [True, True]


def test_without_steps_of_its_own_it_evaluates_at_checkpoints(tmp_path):
    assert [step for step, _ in run(tmp_path, Stage(), every=0)["held_out_loss"]] == [5, 10]


@pytest.mark.parametrize("who", [{"rank": 1}, {"signal": True}])
def test_other_processes_and_those_told_to_stop_do_nothing(tmp_path, who):
    stage = Stage()
    assert run(tmp_path, stage, **who) == {}
    assert stage.exported == []


def test_a_full_disk_costs_the_export_not_the_run(tmp_path, monkeypatch, capsys):
    def full(*_: Any) -> dict[str, float]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Stage, "export", full)
    assert len(run(tmp_path, Stage())["held_out_loss"]) == 6
    assert "NO EXPORT at step 5" in capsys.readouterr().out


class DrawingStage(Stage):
    """Draws a sheet at step 5 alone."""

    sheet = torch.arange(3 * 4 * 5, dtype=torch.uint8).reshape(3, 4, 5)

    def export(self, folder: Path) -> dict[str, float]:
        (folder / "previews").mkdir(exist_ok=True)
        write_png(self.sheet, str(folder / "previews" / "step-00000005.png"))
        return super().export(folder)


def test_loggers_get_the_sheet_that_was_drawn(tmp_path):
    images: list[Any] = []
    board = TensorBoardLogger(tmp_path, name="", version="tensorboard")
    wandb = SimpleNamespace(log_metrics=lambda *_, **__: None, log_image=lambda *given: images.append(given))
    run(tmp_path, DrawingStage(), loggers=[board, wandb])
    board.finalize("success")
    assert images == [("previews", [str(tmp_path / "previews" / "step-00000005.png")], 5)]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (shown,) = events.Images("previews")
    assert shown.step == 5
    content = torch.frombuffer(bytearray(shown.encoded_image_string), dtype=torch.uint8)
    assert torch.equal(decode_image(content), DrawingStage.sheet)
