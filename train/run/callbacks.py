"""Callbacks that act once for each optimizer step, whatever the number of micro-batches."""

from collections.abc import Callable, Collection
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class StepCallback(Callback):
    """Base: `on_start` when training begins or continues, `on_step` after each optimizer step."""

    _seen = 0

    def on_start(self, trainer: Trainer, stage: Any) -> None:
        """Training begins at `trainer.global_step`."""

    def on_step(self, trainer: Trainer, stage: Any, step: int) -> None:
        """`step` optimizer steps are done."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook."""
        self._seen = trainer.global_step
        self.on_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lightning's hook, after each micro-batch."""
        if trainer.global_step != self._seen:
            self._seen = trainer.global_step
            self.on_step(trainer, pl_module, self._seen)


def tell_loggers(trainer: Trainer, action: Callable[[Any], object]) -> None:
    """Let each logger do something; one that fails, of a full disk or a dead server, is out until the next start."""
    for logger in [*trainer.loggers]:
        try:
            action(logger)
        except Exception as error:  # each has errors of its own
            print(f"{type(logger).__name__} STOPS: {error.__cause__ or error}; training goes on without it", flush=True)
            trainer.loggers = [one for one in trainer.loggers if one is not logger]


class CheckpointSteps:
    """Says after which steps there is a checkpoint, with all that lies beside one; the same in every process.

    While the guard throws steps away a checkpoint waits for the next good one, except at the end and where it was asked
    for by its step: a run that stops after too many of them must find one from before the first.

    Args:
        every: Optimizer steps between two.
        keep: Steps at which there is one in any case.
    """

    def __init__(self, every: int, keep: Collection[int] = ()) -> None:
        self.every = every
        self.keep = frozenset(keep)
        self._is_owed = False
        self._answered = (-1, False)

    def is_due(self, step: int, trainer: Trainer, stage: Any) -> bool:
        """Whether there is one after this step, for all who ask."""
        if self._answered[0] != step:
            self._answered = (step, self._decide(step, trainer, stage))
        return self._answered[1]

    def _decide(self, step: int, trainer: Trainer, stage: Any) -> bool:
        is_wanted = is_due(step, self.every, trainer) or step in self.keep or self._is_owed
        is_certain = step >= trainer.max_steps or trainer.should_stop or step in self.keep
        self._is_owed = is_wanted and bool(stage.guard.skipped_in_a_row) and not is_certain
        return is_wanted and not self._is_owed


def is_due(step: int, every: int, trainer: Trainer) -> bool:
    """Whether something that happens every few steps happens after this one; always at the end."""
    return step % every == 0 or step >= trainer.max_steps or trainer.should_stop
