"""The log of a run: `metrics.csv` with one line for each figure, and one printed line now and then."""

import csv
import math
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from seecoder.weights import atomic_path
from train.callbacks import StepCallback, is_due
from train.termination import Termination

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
        figures = stage.take_records()
        figures["images_per_second"] = (step - self._from_step) * self.batch_size / max(seconds, 1e-9)
        figures["data_wait"] = min(1.0, self.waited / max(seconds, 1e-9))
        figures |= _skipped(trainer, stage)
        if step % self.every == 0:  # told to stop, a process must not begin to wait for the others
            figures |= _slowest(trainer, self.alone)
        self._clock, self._from_step = time.monotonic(), step
        self.waited = self.alone = 0.0
        self.write(trainer, step, figures)

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


def _skipped(trainer: Trainer, stage: Any) -> dict[str, float]:
    """Steps that the guard threw away, in all; samples that the first process could not read since it started."""
    loader = getattr(trainer.train_dataloader, "loader", None)
    skips = getattr(loader, "skips", None)
    figures = {"skipped_steps": float(stage.guard.skipped)}
    return figures if skips is None else figures | {"skipped_samples": float(skips.skipped)}


def _slowest(trainer: Trainer, seconds: float) -> dict[str, float]:
    """Which process took longest to read and to compute its losses, and how many times the mean of the others.

    The others wait for it in the exchange of gradients, so that steps take equally long everywhere. On a GPU the losses
    are computed in the background, and this shows reading alone.
    """
    if trainer.world_size == 1:
        return {}
    gathered: Any = trainer.strategy.all_gather(torch.tensor(seconds, device=trainer.strategy.root_device))
    times = gathered.flatten().tolist()
    slowest = times.index(max(times))
    others = (sum(times) - times[slowest]) / (len(times) - 1)
    return {"slowest_process": float(slowest), "slowest_process_times": times[slowest] / max(others, 1e-9)}


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
        checkpoint_every: Optimizer steps between two checkpoints.
    """

    def __init__(self, folder: Path, recorder: Recorder, termination: Termination, every: int, checkpoint_every: int):
        self.folder = folder
        self.recorder = recorder
        self.termination = termination
        self.every = every
        self.checkpoint_every = checkpoint_every

    def on_step(self, trainer: Trainer, stage: Any, step: int) -> None:
        """Evaluate on the first process; the others wait for it at the next gradient exchange."""
        if not trainer.is_global_zero or self.termination.stopped_by_signal:
            return
        export = is_due(step, self.checkpoint_every, trainer)
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
