"""Checkpoints that survive being killed: written beside, synced, renamed, and only trusted with a matching checksum.

Writer and rotation are ours: Lightning's writer builds the file in the temporary folder of the machine and moves it,
which is a copy when that is another file system, and never syncs it; its `ModelCheckpoint` removes the old file before
the new one is known to be whole.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Trainer

from seecoder.export.run_folder import BEST, is_complete, list_checkpoints, marker_path, newest_checkpoint
from seecoder.export.trained_part import read_checkpoint
from seecoder.weights.atomic import atomic_path, remove_left_behind, write_text
from seecoder.weights.safetensors_files import WeightsError
from train.run.callbacks import CheckpointSteps, StepCallback
from train.run.guards import not_finite
from train.run.metrics_file import best_of, read_metrics

_CONTINUED = ("state_dict", "optimizer_states", "loops")


def checkpoint_to_continue(folder: Path, resume: bool) -> Path | None:
    """Checkpoint to continue from, the newest whole one; None for a fresh start.

    Args:
        folder: The run's folder.
        resume: Whether a run that is there may be continued.

    Raises:
        FileExistsError: There are checkpoints, but none to continue from.
    """
    if not list_checkpoints(folder):
        return None
    if not resume:
        raise FileExistsError(f"`run.folder`={folder} holds an earlier run; remove it, choose another, or resume.")
    found = newest_checkpoint(folder)
    if found is None:
        names = ", ".join(path.name for _, path in list_checkpoints(folder))
        raise FileExistsError(
            f"`run.folder`={folder} holds no whole checkpoint: {names} are cut off or damaged. Copy them again from "
            "where they came from, or choose another folder."
        )
    return found


class AtomicCheckpointIO(CheckpointIO):
    """Writes `path` and `path.sha256`, which says whether the first is whole.

    The second is there before the first has its name, and until it has none any more. A kill thus leaves no checkpoint
    that nothing vouches for: where the first one of a run is written, there would be none to continue from.

    Attributes:
        error: Why the last checkpoint could not be written, or None.
    """

    error: Exception | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        """Write one checkpoint; when the disk is full or fails, nothing new is left behind and `error` says so."""
        path = Path(path)
        self.error = None
        try:
            with atomic_path(path) as temporary:
                digest = _save(checkpoint, temporary)
                write_text(marker_path(path), digest)
        except OSError as error:
            _remove_lonely_marker(path)
            # Raised here, it would leave the other processes waiting for this one behind Lightning's barrier.
            self.error = error

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read one checkpoint to continue from; pickled code is never run.

        Raises:
            WeightsError: It is something else, of another step than its name says, not finite, or what a run needs to
                go on exactly was taken out.
        """
        checkpoint: Any = read_checkpoint(path := Path(path))
        found = checkpoint if isinstance(checkpoint, dict) else {}
        lacking, step = [name for name in _CONTINUED if not found.get(name)], found.get("global_step")
        wrong = [f"it has no {', '.join(lacking)}"] * bool(lacking)
        wrong += [f"it is of step {step}"] * (path.stem != f"step-{step or 0:08d}" and path.stem.startswith("step-"))
        state = {"optimizer_states": dict(enumerate(found.get("optimizer_states", ()))), "callbacks": None}
        wrong += [f"{name} is not finite" for name in not_finite(found | state)]
        if wrong:
            raise WeightsError(
                f"{path} cannot be continued: {wrong[0]}. Move it away, or begin a new run from its weights "
                "(`stage.init_args.init_from`)."
            )
        return found

    def remove_checkpoint(self, path: str | os.PathLike) -> None:
        """Remove the checkpoint, and last the file that vouches for it."""
        Path(path).unlink(missing_ok=True)
        marker_path(Path(path)).unlink(missing_ok=True)


class _HashingFile:
    """What `torch.save` writes to: hashes on the way, and remembers the real error, which torch replaces by its own."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            written = self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        return written

    def flush(self) -> None:
        self.file.flush()


def _save(checkpoint: dict[str, Any], path: Path) -> str:
    with path.open("wb") as file:
        target = _HashingFile(file)
        try:
            torch.save(checkpoint, target)  # pyright: ignore[reportArgumentType] - it needs `write` alone
        except RuntimeError as error:
            raise target.error or error from error
    return target.digest.hexdigest()


def _remove_lonely_marker(path: Path) -> None:
    """Remove what vouches for a checkpoint that is not there."""
    if not path.exists():
        marker_path(path).unlink(missing_ok=True)


@dataclass(eq=False)  # callbacks are told apart by identity
class Checkpoints(StepCallback):
    """Saves every few optimizer steps, at the end, and when told to stop; prunes only after the new one is whole.

    Attributes:
        writer: What writes.
        folder: Where checkpoints go.
        steps: Says after which steps there is one; those that it keeps stay for good.
        keep: How many of the newest stay.
        keep_best: Metric of `metrics.csv`, lower being better, whose best checkpoint stays until a better one comes.
    """

    writer: AtomicCheckpointIO
    folder: Path
    steps: CheckpointSteps
    keep: int
    keep_best: str | None = None
    _has_said: bool = field(default=False, init=False)  # that there is no figure to choose the best by

    def on_start(self, trainer: Trainer, stage: Any) -> None:
        """Remove what a process that was killed while it wrote has left behind; set aside what the run passed over."""
        if trainer.is_global_zero:
            remove_left_behind(self.folder)
            for marker in self.folder.glob("step-*.ckpt.sha256"):
                _remove_lonely_marker(marker.with_suffix(""))
            self._set_aside(trainer.global_step)

    def _set_aside(self, start: int) -> None:
        """Rename what is not whole and newer than where the run goes on: it must not count as a kept checkpoint."""
        for step, path in list_checkpoints(self.folder):
            if step > start and not is_complete(path):
                target = path.with_name(path.name + ".broken")
                path.replace(target)
                marker_path(path).unlink(missing_ok=True)
                print(f"{path.name} is not whole and was renamed to {target.name}", flush=True)

    def on_step(self, trainer: Trainer, stage: Any, step: int) -> None:
        """Save where it is due. A full disk costs this checkpoint, not the run."""
        if not self.steps.is_due(step, trainer, stage):
            return
        trainer.save_checkpoint(self.folder / f"step-{step:08d}.ckpt", weights_only=False)
        if not trainer.is_global_zero:
            return
        if self.writer.error is not None:
            print(f"NO CHECKPOINT at step {step}: {self.writer.error}; older ones stay, training goes on", flush=True)
            return
        best = self._note_best()
        others = [(found, path) for found, path in list_checkpoints(self.folder) if found not in self.steps.keep]
        for found, path in others[self.keep :]:
            if found != best:
                self.writer.remove_checkpoint(path)

    def _note_best(self) -> int | None:
        """Write `best.json`; the step of the best checkpoint that there is, from figures that a restart still finds."""
        metrics = self.folder / "metrics.csv"
        if self.keep_best is None or not metrics.is_file():
            return None
        there = dict(list_checkpoints(self.folder))
        best = best_of(metrics, self.keep_best, there)
        if best is None:
            self._say_that_nothing_is_best(metrics)
            return None
        step, value = best
        content = {"step": step, "metric": self.keep_best, "value": value, "checkpoint": there[step].name}
        try:
            write_text(self.folder / BEST, json.dumps(content) + "\n")
        except OSError as error:
            print(f"{BEST} NOT WRITTEN at step {step}: {error}; training goes on", flush=True)
        return step

    def _say_that_nothing_is_best(self, metrics: Path) -> None:
        """Once, and not where evaluations come at other steps: the figure is there, if not beside a checkpoint."""
        names = read_metrics(metrics)
        if self.keep_best in names or self._has_said:
            return
        self._has_said = True
        print(
            f"no {BEST}: metrics.csv has no `{self.keep_best}` (`run.keep_best`), but {', '.join(sorted(names))}",
            flush=True,
        )
