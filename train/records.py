"""The log of a run: `metrics.csv` with one line for each figure, and one printed line now and then."""

import csv
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from train.files import atomic_file

_HEADER = ["step", "metric", "value"]


class MetricsFile:
    """Appends to `metrics.csv`; a continued run first cuts what an interrupted one wrote after its last checkpoint."""

    def __init__(self, path: Path):
        self.path = path

    def cut_after(self, step: int) -> None:
        """Forget lines of later steps, and start the file if there is none."""
        rows: list[list[str]] = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                rows = [row for row in list(csv.reader(file))[1:] if len(row) == 3 and int(row[0]) <= step]
        with atomic_file(self.path) as temporary, temporary.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([_HEADER, *rows])

    def append(self, step: int, figures: dict[str, float]) -> None:
        """Write one line for each figure."""
        with self.path.open("a", newline="") as file:
            rows = [[step, name, f"{value:.6g}"] for name, value in figures.items()]
            csv.writer(file, lineterminator="\n").writerows(rows)


class Recorder(Callback):
    """Writes and prints the means that the stage recorded, with throughput.

    Args:
        folder: The run's folder.
        every: Optimizer steps between two lines.
        batch_size: Samples of one optimizer step over all processes.
    """

    def __init__(self, folder: Path, every: int, batch_size: int):
        self.file = MetricsFile(folder / "metrics.csv")
        self.every = every
        self.batch_size = batch_size

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Start or continue the file."""
        self._clock, self._step = time.monotonic(), trainer.global_step
        if trainer.is_global_zero:
            self.file.cut_after(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        """Write a line every few steps."""
        step = trainer.global_step
        if step == self._step or (step % self.every and step < trainer.max_steps):
            return
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return
        seconds = time.monotonic() - self._clock
        figures = pl_module.take_records()
        figures["images_per_second"] = (step - self._step) * self.batch_size / max(seconds, 1e-9)
        self._clock, self._step = time.monotonic(), step
        self.write(trainer, step, figures)

    def write(self, trainer: Trainer, step: int, figures: dict[str, float]) -> None:
        """Log figures of one step everywhere."""
        if not trainer.is_global_zero:
            return
        self.file.append(step, figures)
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=step)
        line = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        print(f"step {step}/{trainer.max_steps}  {line}", flush=True)


class Evaluation(Callback):
    """Evaluates and exports with the averaged weights: every few steps, with every checkpoint, and at the end.

    Args:
        folder: The run's folder; exports go there.
        recorder: Where figures go.
        every: Optimizer steps between two evaluations; 0 for those at checkpoints only.
        checkpoint_every: Optimizer steps between two checkpoints.
    """

    def __init__(self, folder: Path, recorder: Recorder, every: int, checkpoint_every: int):
        self.folder = folder
        self.recorder = recorder
        self.every = every
        self.checkpoint_every = checkpoint_every
        self._done = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A continued run does not evaluate its starting point again."""
        self._done = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        """Evaluate, and export where a checkpoint is due."""
        step = trainer.global_step
        if step == self._done or trainer.fit_loop.epoch_loop._should_accumulate():
            return
        ends = step >= trainer.max_steps or trainer.should_stop
        checkpoint = ends or step % self.checkpoint_every == 0
        if checkpoint or (self.every and step % self.every == 0):
            self._done = step
            self._run(trainer, pl_module, export=checkpoint)

    def _run(self, trainer: Trainer, stage: Any, export: bool) -> None:
        started = time.monotonic()
        with stage.evaluating():
            figures = stage.evaluate()
            if export and trainer.is_global_zero:
                stage.export(self.folder)
        if figures:
            self.recorder.write(trainer, trainer.global_step, figures)
        self.recorder._clock += time.monotonic() - started  # throughput counts training only
