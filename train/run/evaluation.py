"""Evaluation and export with the averaged weights, at steps of a run."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from seecoder.images.gate import load_image
from train.run.callbacks import CheckpointSteps, StepCallback, tell_loggers
from train.run.recorder import Recorder
from train.run.termination import Termination


@dataclass(eq=False)  # callbacks are told apart by identity
class Evaluation(StepCallback):
    """Evaluates and exports with the averaged weights: every few steps, with every checkpoint, and at the end.

    Attributes:
        folder: The run's folder; exports go there.
        recorder: Where figures go.
        termination: Knows whether the process was told to stop; then there is no time for this.
        every: Optimizer steps between two evaluations; 0 for those at checkpoints only.
        checkpoints: Says after which steps there is a checkpoint.
    """

    folder: Path
    recorder: Recorder
    termination: Termination
    every: int
    checkpoints: CheckpointSteps

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
                if (sheet := self.folder / "previews" / f"step-{step:08d}.png").is_file():
                    tell_loggers(trainer, lambda logger: _show(logger, sheet, step))
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


def _show(logger: Any, sheet: Path, step: int) -> None:
    if hasattr(logger, "log_image"):
        logger.log_image("previews", [str(sheet)], step)
    else:  # TensorBoard's
        logger.experiment.add_image("previews", load_image(sheet), step)
