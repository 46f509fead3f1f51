"""Being told to stop, or running out of time, ends a run cleanly: one checkpoint, after the same step everywhere."""

import signal
import time
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from train.callbacks import StepCallback


class Termination(StepCallback):
    """Turns SIGTERM and a time budget into a stop after the present optimizer step.

    Lightning's own handler broadcasts inside the signal handler, hangs when the signal reaches another process than the
    first, and ends with exit code 0. Here a handler only sets a flag, which is combined over processes between steps.

    Args:
        max_minutes: Also stop after this time; None for no limit.
        check_every: Optimizer steps between two looks; with several processes one look is one small all-reduce. More
            than 1 delays the save: steps of large models take half a minute, and schedulers wait a few minutes.
    """

    def __init__(self, max_minutes: float | None = None, check_every: int = 1):
        self.max_minutes = max_minutes
        self.check_every = check_every
        self.signaled = False
        self.stopped_by_signal = False
        self._started = 0.0
        self._previous: Any = None

    def on_start(self, trainer: Trainer, stage: Any) -> None:
        """Replace Lightning's handler, which was installed just before."""
        self._started = time.monotonic()
        self._previous = signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signaled = True

    def on_step(self, trainer: Trainer, stage: Any, step: int) -> None:
        """Stop all processes after the same step."""
        if step % self.check_every:
            return
        out_of_time = self.max_minutes is not None and time.monotonic() - self._started > 60 * self.max_minutes
        flags = torch.tensor([self.signaled, out_of_time], dtype=torch.int32, device=stage.device)
        if trainer.world_size > 1:
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        by_signal, by_time = flags.bool().tolist() if trainer.world_size > 1 else (self.signaled, out_of_time)
        if by_signal or by_time:
            self.stopped_by_signal = by_signal
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the handler back."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
