"""The log of a run: `metrics.csv` with one line for each figure, and one printed line now and then."""

import csv
import math
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from seecoder.weights.safetensors_files import atomic_path
from train.run.callbacks import CheckpointSteps, StepCallback, is_due
from train.run.shares import Share, gather, means, slowest
from train.run.termination import Termination

BEST = "best.json"  # in a run's folder: which checkpoint has the best figure
_HEADER = ["step", "metric", "value"]


def read_metrics(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Read `metrics.csv`: by metric, (step, value) in the order of writing, without half-written lines."""
    found: dict[str, list[tuple[int, float]]] = {}
    for (step, name, _), value in _read_rows(path):
        found.setdefault(name, []).append((int(step), value))
    return found


def _read_rows(path: Path) -> Iterator[tuple[list[str], float]]:
    """Rows that are whole, each with its value; the header, half a line or what a power cut left is passed over."""
    text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "\ufffd")
    for row in csv.reader(text.splitlines()):
        try:
            int(row[0])
            value = float(row[2])
        except (IndexError, ValueError):
            continue
        if len(row) == 3:
            yield row, value


def best_of(path: Path, metric: str, steps: Collection[int]) -> tuple[int, float] | None:
    """Step with the lowest finite value of a metric, and the value.

    Args:
        path: `metrics.csv`.
        metric: Its name.
        steps: Steps that count, such as those with a checkpoint.
    """
    values = {step: value for step, value in read_metrics(path).get(metric, ()) if step in steps}
    finite = [(value, step) for step, value in values.items() if math.isfinite(value)]
    return (min(finite)[1], min(finite)[0]) if finite else None


class MetricsFile:
    """Appends to `metrics.csv`; a continued run first cuts what an interrupted one wrote after its last checkpoint."""

    def __init__(self, path: Path):
        self.path = path
        self._unwritten: list[list[str]] = []  # what the disk had no place for

    def cut_after(self, step: int) -> None:
        """Forget lines of later steps, and start the file if there is none."""
        found = [row for row, _ in _read_rows(self.path)] if self.path.exists() else []
        rows = [row for row in found if int(row[0]) <= step]
        try:
            with atomic_path(self.path) as temporary, temporary.open("w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([_HEADER, *rows])
        except OSError as error:
            print(f"{self.path.name} NOT CUT after step {step}: {error}; training goes on", flush=True)

    def append(self, step: int, figures: dict[str, float]) -> None:
        """Write one line for each figure. A full disk costs no line: it comes with the next that can be written."""
        self._unwritten += [[str(step), name, f"{value:.6g}"] for name, value in figures.items()]
        try:
            length = self.path.stat().st_size if self.path.exists() else 0
            try:
                with self.path.open("a", newline="") as file:
                    header = [] if length else [_HEADER]  # the disk may have been full from the start
                    csv.writer(file, lineterminator="\n").writerows([*header, *self._unwritten])
            except OSError:
                os.truncate(self.path, length)  # no half lines, and none twice
                raise
        except OSError as error:
            print(f"NOT LOGGED at step {step}: {error}; training goes on", flush=True)
        else:
            self._unwritten = []


class Recorder(StepCallback):
    """Writes and prints the means that the stage recorded, with throughput.

    A line is of all processes: means of losses and of `data_wait`, the sum of `skipped_samples`. For that they exchange
    their shares, every few steps. A last line between two of these is the first process's alone, with what the others
    had skipped until the line before. `skipped_samples` and `skipped_steps` count from the run's first start on.

    Args:
        folder: The run's folder.
        every: Optimizer steps between two lines.
        batch_size: Samples of one optimizer step over all processes.
    """

    def __init__(self, folder: Path, every: int, batch_size: int):
        self.file = MetricsFile(folder / "metrics.csv")
        self.every = every
        self.batch_size = batch_size
        self.waited = 0.0  # seconds since the last line that went into waiting for data
        self.alone = 0.0  # those and the forward passes: what a process does without waiting for the others
        self._clock, self._from_step = 0.0, 0
        self._skipped_before = 0  # samples, at earlier starts of the run
        self._skipped_elsewhere = 0  # samples, by the other processes until the last exchange

    def on_start(self, trainer: Trainer, stage: Any) -> None:
        """Start or continue the file."""
        self._clock, self._from_step = time.monotonic(), trainer.global_step
        if trainer.is_global_zero:
            self.file.cut_after(trainer.global_step)

    def on_step(self, trainer: Trainer, stage: Any, step: int) -> None:
        """Write a line every few steps."""
        if not is_due(step, self.every, trainer):
            return
        seconds = time.monotonic() - self._clock
        skipped = _skipped_here(trainer)
        shares = [Share(self.waited, self.alone, skipped or 0, stage.take_records())]
        if step % self.every == 0:  # told to stop, a process must not begin to wait for the others
            shares = gather(shares[0], trainer.world_size)
            self._skipped_elsewhere = sum(share.skipped for share in shares) - (skipped or 0)
        figures = means(shares)
        figures["images_per_second"] = (step - self._from_step) * self.batch_size / max(seconds, 1e-9)
        waited = sum(share.waited for share in shares) / len(shares)
        figures["data_wait"] = min(1.0, waited / max(seconds, 1e-9))
        figures["skipped_steps"] = float(stage.guard.skipped)
        if skipped is not None:
            figures["skipped_samples"] = float(self._skipped_in_all(skipped))
        figures |= slowest(shares)
        self._clock, self._from_step = time.monotonic(), step
        self.waited = self.alone = 0.0
        self.write(trainer, step, figures)

    def _skipped_in_all(self, here: int) -> int:
        return self._skipped_before + self._skipped_elsewhere + here

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the count of samples that could not be read; readers count from zero at each start."""
        checkpoint["skipped_samples"] = self._skipped_in_all(_skipped_here(trainer) or 0)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count on from there."""
        self._skipped_before = int(checkpoint.get("skipped_samples", 0))

    def leave_out(self, seconds: float) -> None:
        """Do not count time that was not spent on training."""
        self._clock += seconds

    def write(self, trainer: Trainer, step: int, figures: dict[str, float]) -> None:
        """Log figures of one step everywhere."""
        if not trainer.is_global_zero:
            return
        self.file.append(step, figures)
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=step)
        line = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        print(f"step {step}/{trainer.max_steps}  {line}", flush=True)


def _skipped_here(trainer: Trainer) -> int | None:
    """Samples that this process could not read since it started; None where nothing is read from shards."""
    skips = getattr(getattr(trainer.train_dataloader, "loader", None), "skips", None)
    return None if skips is None else skips.skipped


class DataWait(Callback):
    """Measures what a process waits for its data, and what its losses take; the last of all callbacks."""

    def __init__(self, recorder: Recorder):
        self.recorder = recorder
        self._idle_since = self._arrived = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first batch is waited for, too."""
        self._idle_since = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A batch is there."""
        self._arrived = time.monotonic()
        self.recorder.waited += self._arrived - self._idle_since
        self.recorder.alone += self._arrived - self._idle_since

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """The loss of a micro-batch is there; from here on processes wait for each other."""
        self.recorder.alone += time.monotonic() - self._arrived

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A batch is done, and so are evaluation and checkpoint."""
        self._idle_since = time.monotonic()


class Evaluation(StepCallback):
    """Evaluates and exports with the averaged weights: every few steps, with every checkpoint, and at the end.

    Args:
        folder: The run's folder; exports go there.
        recorder: Where figures go.
        termination: Knows whether the process was told to stop; then there is no time for this.
        every: Optimizer steps between two evaluations; 0 for those at checkpoints only.
        checkpoints: Says after which steps there is a checkpoint.
    """

    def __init__(
        self, folder: Path, recorder: Recorder, termination: Termination, every: int, checkpoints: CheckpointSteps
    ):
        self.folder = folder
        self.recorder = recorder
        self.termination = termination
        self.every = every
        self.checkpoints = checkpoints

    def on_step(self, trainer: Trainer, stage: Any, step: int) -> None:
        """Evaluate on the first process; the others wait for it at the next gradient exchange."""
        export = self.checkpoints.is_due(step, trainer, stage)
        if not trainer.is_global_zero or self.termination.stopped_by_signal:
            return
        if not export and (not self.every or step % self.every):
            return
        started = time.monotonic()
        with stage.evaluating():
            figures = stage.evaluate()
            if export:
                figures |= self._export(stage, step)
        if figures:
            self.recorder.write(trainer, step, figures)
        self.recorder.leave_out(time.monotonic() - started)

    def _export(self, stage: Any, step: int) -> dict[str, float]:
        """Export; a full disk costs this export, not the run."""
        try:
            return stage.export(self.folder) or {}
        except OSError as error:
            print(f"NO EXPORT at step {step}: {error}; an older one stays, training goes on", flush=True)
            return {}
