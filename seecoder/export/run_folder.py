"""The folder of a training run: which checkpoints it holds, which of them are whole, the newest and the best one.

A checkpoint `step-00001000.ckpt` has a file `step-00001000.ckpt.sha256` beside it with the digest of its bytes; it is
*whole* if the two agree. One that was copied without that file is whole if its own checksums agree. `best.json` names
the checkpoint that was best in validation.
"""

import json
import logging
import re
import zipfile
from pathlib import Path

from seecoder.weights.digests import file_sha256
from seecoder.weights.safetensors_files import WeightsError

BEST = "best.json"
_NAME = re.compile(r"step-(\d{8})\.ckpt")

_logger = logging.getLogger(__name__)


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """List step and path of every checkpoint in a folder, newest first, whole or not."""
    found = [(match, path) for path in folder.glob("step-*.ckpt") if (match := _NAME.fullmatch(path.name))]
    return sorted(((int(match[1]), path) for match, path in found), reverse=True)


def marker_path(checkpoint: Path) -> Path:
    """Name the file that holds the digest of a checkpoint."""
    return checkpoint.with_name(checkpoint.name + ".sha256")


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end and has not changed since."""
    marker = marker_path(checkpoint)
    if marker.is_file():
        return checkpoint.is_file() and marker.read_bytes().strip() == file_sha256(checkpoint).encode()
    try:  # no kill leaves one without its marker, but a copy may; torch writes a checksum of every part
        with zipfile.ZipFile(checkpoint) as parts:
            return parts.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def newest_checkpoint(folder: Path) -> Path | None:
    """Find the newest whole checkpoint of a run; those that are not whole are named in the log and passed over.

    Args:
        folder: The run's folder.

    Returns:
        The checkpoint, or None if there is no whole one.
    """
    for _, path in list_checkpoints(folder):
        if is_complete(path):
            return path
        _logger.warning("%s is not a complete checkpoint; looking for an older one", path)
    return None


def best_checkpoint(folder: Path) -> Path:
    """Find the checkpoint that was best in validation.

    Args:
        folder: The run's folder, in which training keeps `best.json` while `keep_best` is set.

    Raises:
        FileNotFoundError: None was chosen, or it is not there any more.
        WeightsError: `best.json` is damaged.
    """
    note = folder / BEST
    if not note.is_file():
        raise FileNotFoundError(f"`{note}` does not exist: the run chose no best checkpoint; set `run.keep_best`.")
    try:
        found = folder / str(json.loads(note.read_text())["checkpoint"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise WeightsError(f"`{note}` is damaged ({error!r}); name the checkpoint itself.") from None
    if not found.is_file():
        raise FileNotFoundError(f"`{found}`, which `{note}` names, does not exist; name another checkpoint.")
    return found
