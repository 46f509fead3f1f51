"""Being told to stop, or running out of time, ends a run cleanly: one checkpoint, after the same step everywhere."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from data.shards.reading.signals import STOP_SIGNALS
from train.run.callbacks import StepCallback


class ToldToStop(BaseException):
    """A signal came before training listens: there is nothing to save yet."""


@contextmanager
def leaving_on_signals() -> Iterator[None]:
    """Raise `ToldToStop` where a signal comes inside the block; until `Termination` takes over.

    Loading large weights takes minutes, and a scheduler that preempts a run in them must see that it was told to stop,
    not that it failed.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise ToldToStop

    if threading.current_thread() is not threading.main_thread():  # others cannot listen
        yield
        return
    previous = {number: signal.signal(number, leave) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Termination(StepCallback):
    """Turns the signals that schedulers warn with and a time budget into a stop after the present optimizer step.

    Ours, because Lightning's own handler broadcasts inside the signal handler, hangs when the signal reaches another
    process than the first, and ends with exit code 0; under SLURM a second one answers SIGUSR1 with a checkpoint from
    the middle of a step, and with a requeue that belongs to the launch file. Here a handler only sets a flag, which is
    combined over processes between steps.

    Args:
        max_minutes: Also stop after this time; None for no limit.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        self.max_minutes = max_minutes
        self.signaled = False
        self.stopped_by_signal = False
        self._started = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen in place of Lightning."""
        trainer._signal_connector.register_signal_handlers = lambda: None
        self._previous = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}

    def on_start(self, trainer: Trainer, stage: Any) -> None:
        """Time begins with the first step."""
        self._started = time.monotonic()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signaled = True

    def on_step(self, trainer: Trainer, stage: Any, step: int) -> None:
        """Stop all processes after the same step."""
        out_of_time = self.max_minutes is not None and time.monotonic() - self._started > 60 * self.max_minutes
        flags = torch.tensor([self.signaled, out_of_time], dtype=torch.int32, device=stage.device)
        if trainer.world_size > 1:
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        by_signal, by_time = flags.bool().tolist() if trainer.world_size > 1 else (self.signaled, out_of_time)
        if by_signal or by_time:
            self.stopped_by_signal = by_signal
            trainer.should_stop = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the handlers back."""
        while self._previous:
            signal.signal(*self._previous.popitem())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the handlers back, also where training fails."""
        self.teardown(trainer, pl_module, "fit")
