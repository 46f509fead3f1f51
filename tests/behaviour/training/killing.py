"""Lets a process kill itself, as `kill -9` would, at a chosen moment of its training."""

import multiprocessing
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.run import checkpoints


def die() -> None:
    """End here and now; the log says which processes are left alone."""
    print("leaves", *(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_write(step: int, place: float) -> None:
    """Die when a part of that step's checkpoint is on the disk.

    Args:
        step: Optimizer step of the checkpoint.
        place: Share of the file's bytes; -1 stands for all but the last byte.
    """
    save = checkpoints._save

    def dying_save(checkpoint: dict[str, Any], path: Path) -> str:
        if f"step-{step:08d}.ckpt" not in path.name:
            return save(checkpoint, path)
        save(checkpoint, path)
        size = path.stat().st_size
        path.unlink()
        room = size - 1 if place == -1 else int(place * size)
        checkpoints._HashingFile = lambda file: _Dying(file, room)
        return save(checkpoint, path)

    checkpoints._save = dying_save


class _Dying(checkpoints._HashingFile):
    """Takes so many bytes, and no more."""

    def __init__(self, file: Any, room: int):
        super().__init__(file)
        self.room = room

    def write(self, data: bytes) -> int:
        if len(data) > self.room:
            self.file.write(data[: self.room])
            self.file.flush()
            die()
        self.room -= len(data)
        return super().write(data)


def kill_at_rename(step: int, name: str, after: bool) -> None:
    """Die before or after a file of that step's checkpoint gets its name.

    Args:
        step: Optimizer step of the checkpoint.
        name: "ckpt", or "ckpt.sha256" for what says that it is whole.
        after: After it, or before.
    """
    _around(os, "replace", lambda _, target: Path(target).name == f"step-{step:08d}.{name}", after)


def kill_in_step(step: int, rank: int = 0) -> None:
    """Die in the forward pass of an optimizer step."""
    from train.stages.seecoder import SeeCoderStage

    _around(SeeCoderStage, "loss", lambda stage, _: (stage.global_step, stage.global_rank) == (step, rank), True)


def kill_while_gathering(step: int, rank: int) -> None:
    """Die when the first weight's state of AdamW, of which each process has a share, was gathered for a checkpoint."""
    from deepspeed import utils

    from train.run.zero import ZeroStrategy

    def begins(strategy: Any, _: Any) -> bool:
        if (strategy.lightning_module.global_step, strategy.global_rank) == (step, rank):
            _around(utils, "safe_get_full_optimizer_state", lambda *_: True, after=True)
        return False

    _around(ZeroStrategy, "optimizer_state", begins, after=False)


def _around(owner: Any, name: str, is_now: Callable[..., bool], after: bool) -> None:
    original = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        now = is_now(*arguments)
        if now and not after:
            die()
        found = original(*arguments, **options)
        if now:
            die()
        return found

    setattr(owner, name, call)


MOMENTS = {
    "write": kill_in_write,
    "rename": kill_at_rename,
    "step": kill_in_step,
    "gather": kill_while_gathering,
}


def arrange(kind: str, *arguments: Any) -> None:
    """Let this process die at one of `MOMENTS`."""
    MOMENTS[kind](*arguments)


def files_of(folder: Path, step: int) -> set[str]:
    """Files of that step's checkpoint: "ckpt", "ckpt.sha256", and with a dot before them what has no name yet."""
    found = {re.sub(r"\.[0-9a-f]{8}\.partial$", "", path.name) for path in folder.glob(f"*step-{step:08d}.*")}
    return {name.replace(f"step-{step:08d}.", "") for name in found}
