"""The log of a run: means of what all processes recorded, written and printed as one line now and then."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, distributed

from train.run.callbacks import StepCallback, is_due, tell_loggers
from train.run.metrics_file import MetricsFile


@dataclass(frozen=True)
class ProcessFigures:
    """What one process knows of a line of the log.

    Attributes:
        waited: Seconds since the last line that went into waiting for data.
        alone: Those and the forward passes: what a process does without waiting for the others.
        skipped: Samples that it could not read since it started.
        records: Sum and count of each recorded figure since the last line.
    """

    waited: float = 0.0
    alone: float = 0.0
    skipped: int = 0
    records: Mapping[str, tuple[float, int]] = field(default_factory=dict)


def gather_figures(own: ProcessFigures, processes: int) -> list[ProcessFigures]:
    """Figures of all processes, by rank; each of them has to call this."""
    if processes == 1:
        return [own]
    found: list[Any] = [None] * processes
    distributed.all_gather_object(found, own)  # no tensor: a loss level may be drawn in some processes only
    return found


def mean_records(figures: Sequence[ProcessFigures]) -> dict[str, float]:
    """Mean of each recorded figure over the processes that recorded it, each as often as it did."""
    totals: dict[str, float] = {}
    counts: dict[str, int] = {}
    for one in figures:
        for name, (total, count) in one.records.items():
            totals[name] = totals.get(name, 0.0) + total
            counts[name] = counts.get(name, 0) + count
    return {name: total / counts[name] for name, total in totals.items()}


def slowest_process(figures: Sequence[ProcessFigures]) -> dict[str, float]:
    """Which process took longest to read and to compute its losses, and how many times the mean of the others.

    The others wait for it in the exchange of gradients, so that steps take equally long everywhere. On a GPU the losses
    are computed in the background, and this shows reading alone.
    """
    if len(figures) == 1:
        return {}
    seconds = [one.alone for one in figures]
    last = seconds.index(max(seconds))
    others = (sum(seconds) - seconds[last]) / (len(seconds) - 1)
    return {"slowest_process": float(last), "slowest_process_times": seconds[last] / max(others, 1e-9)}


class Recorder(StepCallback):
    """Writes and prints the means that the stage recorded, with throughput.

    A line is of all processes: means of losses and of `data_wait`, the sum of `skipped_samples`. For that they exchange
    their figures, every few steps. A last line between two of these is the first process's alone, with what the others
    had skipped until the line before. `skipped_samples` and `skipped_steps` count from the run's first start on.

    Args:
        folder: The run's folder.
        every: Optimizer steps between two lines.
        batch_size: Samples of one optimizer step over all processes.
    """

    def __init__(self, folder: Path, every: int, batch_size: int) -> None:
        self.file = MetricsFile(folder / "metrics.csv")
        self.every = every
        self.batch_size = batch_size
        self.waited = 0.0  # seconds since the last line that went into waiting for data
        self.alone = 0.0  # those and the forward passes: what a process does without waiting for the others
        self._clock, self._from_step = self._started = 0.0, 0  # second and step
        self._columns: dict[bool, set[str]] = {True: set(), False: set()}  # of training, and of evaluations
        self._skipped_before = 0  # samples, at earlier starts of the run
        self._skipped_elsewhere = 0  # samples, by the other processes until the last exchange

    def on_start(self, trainer: Trainer, stage: Any) -> None:
        """Start or continue the file, and tell the stage's guard to note skipped steps beside it."""
        folder = self.file.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        stage.guard.folder, stage.guard.rank = folder, trainer.global_rank
        self._clock, self._from_step = self._started = time.monotonic(), trainer.global_step
        if trainer.is_global_zero:
            self.file.cut_after(trainer.global_step)

    def on_step(self, trainer: Trainer, stage: Any, step: int) -> None:
        """Write a line every few steps."""
        if not is_due(step, self.every, trainer):
            return
        seconds = time.monotonic() - self._clock
        skipped = _skipped_by_this_process(trainer)
        found = [ProcessFigures(self.waited, self.alone, skipped or 0, stage.take_records())]
        if step % self.every == 0:  # told to stop, a process must not begin to wait for the others
            found = gather_figures(found[0], trainer.world_size)
            self._skipped_elsewhere = sum(one.skipped for one in found) - (skipped or 0)
        figures = mean_records(found)
        figures["images_per_second"] = (step - self._from_step) * self.batch_size / max(seconds, 1e-9)
        waited = sum(one.waited for one in found) / len(found)
        figures["data_wait"] = min(1.0, waited / max(seconds, 1e-9))
        figures["skipped_steps"] = float(stage.guard.skipped)
        if skipped is not None:
            figures["skipped_samples"] = float(self._skipped_before + self._skipped_elsewhere + skipped)
        figures |= slowest_process(found)
        self._clock, self._from_step = time.monotonic(), step
        self.waited = self.alone = 0.0
        self.write(trainer, step, figures)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the loggers, in Lightning's place."""
        tell_loggers(trainer, lambda logger: logger.finalize("success"))
        trainer.loggers = []

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the count of samples that could not be read; readers count from zero at each start."""
        own = _skipped_by_this_process(trainer) or 0
        checkpoint["skipped_samples"] = self._skipped_before + self._skipped_elsewhere + own

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count on from there."""
        self._skipped_before = int(checkpoint.get("skipped_samples", 0))

    def leave_out(self, seconds: float) -> None:
        """Do not count time that was not spent on training."""
        self._clock += seconds

    def write(self, trainer: Trainer, step: int, figures: dict[str, float]) -> None:
        """Log figures of one step everywhere. What no line had before adds a column to those of its kind."""
        if not trainer.is_global_zero:
            return
        self.file.append(step, figures)
        charts = {_chart(name) + name: value for name, value in figures.items()}
        tell_loggers(trainer, lambda logger: logger.log_metrics(charts, step=step))
        (columns := self._columns["loss" in figures]).update(figures)
        texts = {name: f"{value:.4g}" for name, value in figures.items()}
        names = sorted(columns, key=lambda name: ("loss" not in name, name))
        line = "  ".join(f"{name} {texts.get(name, '-'):<10}" for name in names)
        seconds, steps = time.monotonic() - self._started[0], max(1, step - self._started[1])
        left = round(seconds / steps * (trainer.max_steps - step))
        place = f"step {step}/{trainer.max_steps}".ljust(2 * len(f"{trainer.max_steps}") + 6)
        clock = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
        print(f"{place}  left {clock:<9}  {line}".rstrip(), flush=True)


def _chart(name: str) -> str:
    """Where loggers draw a figure: losses that count by weights, as the optimizer sees them, and those that do not."""
    return "weighted/" if name == "loss" else "unweighted/" if "loss" in name else ""


def _skipped_by_this_process(trainer: Trainer) -> int | None:
    """Samples that this process could not read since it started; None where nothing is read from shards."""
    skips = getattr(getattr(trainer.train_dataloader, "loader", None), "skips", None)
    return None if skips is None else skips.skipped


class DataWait(Callback):
    """Measures what a process waits for its data, and what its losses take; the last of all callbacks."""

    def __init__(self, recorder: Recorder) -> None:
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
