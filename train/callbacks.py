"""Callbacks that act once for each optimizer step, whatever the number of micro-batches."""

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


def is_due(step: int, every: int, trainer: Trainer) -> bool:
    """Whether something that happens every few steps happens after this one; always at the end."""
    return step % every == 0 or step >= trainer.max_steps or trainer.should_stop
