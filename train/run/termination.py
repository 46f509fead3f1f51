"""Being told to stop, or running out of time, ends a run cleanly: one checkpoint, after the same step everywhere."""

import os
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

_SECOND = 1.0  # seconds after the first Ctrl-C: torchrun passes on one that the terminal has sent to all


class ToldToStop(BaseException):
    """A signal that ends the program at once: nothing is trained yet, or Ctrl-C came twice.

    Args:
        number: The signal.
        text: What to say.
    """

    def __init__(self, number: int, text: str = "told to stop while nothing was trained") -> None:
        super().__init__(f"{text}; the same command goes on")
        self.exit_code = exit_code(number)


def exit_code(number: int) -> int:
    """Exit code for a signal: 130 for Ctrl-C, as shells have it; else 143, which schedulers know."""
    return 128 + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)


@contextmanager
def leaving_on_signals() -> Iterator[None]:
    """Raise `ToldToStop` where a signal comes inside the block; until `Termination` takes over.

    Loading large weights takes minutes, and a scheduler that preempts a run in them must see that it was told to stop,
    not that it failed.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise ToldToStop(number)

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
    combined over processes between steps. A second Ctrl-C stops at once.

    Args:
        max_minutes: Also stop after this time; None for no limit.

    Attributes:
        signaled: Number of the signal that this process got; 0 for none.
        stopped_by_signal: Number of the signal that ends the run, in all processes; 0 for none.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        self.max_minutes = max_minutes
        self.signaled = self.stopped_by_signal = 0
        self._started = self._interrupted = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen in place of Lightning."""
        trainer._signal_connector.register_signal_handlers = lambda: None
        self._previous = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}

    def on_start(self, trainer: Trainer, stage: Any) -> None:
        """Time begins with the first step."""
        self._started = time.monotonic()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signaled = max(self.signaled, int(number))
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if self._interrupted and now - self._interrupted > _SECOND:
            raise ToldToStop(number, "interrupted twice: stopped without saving what came after the last checkpoint")
        if not self._interrupted:  # `print` may be in the middle of a line
            os.write(2, b"\ninterrupted: will save after this step and stop; again stops at once, without saving\n")
        self._interrupted = self._interrupted or now

    def on_step(self, trainer: Trainer, stage: Any, step: int) -> None:
        """Stop all processes after the same step."""
        out_of_time = self.max_minutes is not None and time.monotonic() - self._started > 60 * self.max_minutes
        by_signal, by_time = self.signaled, out_of_time
        if trainer.world_size > 1:
            flags = torch.tensor([by_signal, by_time], dtype=torch.int32, device=stage.device)
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
            by_signal, by_time = flags.tolist()
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
