"""Checkpoints that survive being killed: written beside, synced, renamed, and only trusted with a matching checksum.

Lightning's own writer builds the file in the temporary folder of the machine and moves it, which is a copy when that
is another file system, and never syncs it.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from train.files import atomic_file

_NAME = re.compile(r"step-(\d{8})\.ckpt")


class AtomicCheckpointIO(CheckpointIO):
    """Writes `path` and `path.sha256`; the second, written last, says that the first is whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        """Write one checkpoint; on any error nothing new is left behind."""
        path = Path(path)
        with atomic_file(path) as temporary:
            torch.save(checkpoint, temporary)
            digest = file_digest(temporary)
        with atomic_file(_marker(path)) as temporary:
            temporary.write_text(digest)

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read one checkpoint; pickled code is never run."""
        return torch.load(path, map_location="cpu", weights_only=True)

    def remove_checkpoint(self, path: str | os.PathLike) -> None:
        """Remove the marker first, so that a half-removed checkpoint is not taken for a whole one."""
        _marker(Path(path)).unlink(missing_ok=True)
        Path(path).unlink(missing_ok=True)


def _marker(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_complete(path: Path) -> bool:
    """Whether a checkpoint was written to its end and has not changed since."""
    marker = _marker(path)
    return path.is_file() and marker.is_file() and marker.read_text().strip() == file_digest(path)


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Step and path of every checkpoint in `folder`, newest first, complete or not."""
    found = [(match, path) for path in folder.glob("step-*.ckpt") if (match := _NAME.fullmatch(path.name))]
    return sorted(((int(match.group(1)), path) for match, path in found), reverse=True)


def newest_complete(folder: Path) -> Path | None:
    """Newest whole checkpoint; broken ones are named and passed over."""
    for _, path in list_checkpoints(folder):
        if is_complete(path):
            return path
        print(f"{path} is not a complete checkpoint; looking for an older one", flush=True)
    return None


class Checkpoints(Callback):
    """Saves every few optimizer steps, at the end, and when told to stop; prunes only after the new one is whole.

    Args:
        folder: Where checkpoints go.
        every: Optimizer steps between two.
        keep: How many of the newest stay.
    """

    def __init__(self, folder: Path, every: int, keep: int):
        self.folder = folder
        self.every = every
        self.keep = keep
        self.saved_step = -1

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Save after the last micro-batch of every `every`-th step."""
        step = trainer.global_step
        if step == self.saved_step or trainer.fit_loop.epoch_loop._should_accumulate():
            return
        if step % self.every == 0 or trainer.should_stop or step >= trainer.max_steps:
            self.save(trainer, step)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A continued run does not save its starting point again."""
        self.saved_step = trainer.global_step

    def save(self, trainer: Trainer, step: int) -> None:
        """Save now; every process calls this. A full disk costs this checkpoint, not the run."""
        self.saved_step = step
        try:
            trainer.save_checkpoint(self.folder / f"step-{step:08d}.ckpt")
        except OSError as error:
            print(
                f"CHECKPOINT NOT WRITTEN at step {step}: {error}; older checkpoints stay, training goes on", flush=True
            )
            return
        if trainer.is_global_zero:
            for _, path in list_checkpoints(self.folder)[self.keep :]:
                trainer.strategy.remove_checkpoint(path)
