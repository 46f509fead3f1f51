"""What training leaves behind: the trained part of an encoder, and where its frozen part came from.

A training run saves neither the frozen backbone nor the UNet. Its checkpoint is a torch file with a dictionary
"seecoder", read with `weights_only=True`, so that plain values and tensors load and nothing else does. The entries:

* `encoder_config`: how the encoder is built;
* `encoder_trainable`: the trained tensors, and `ema`, their running average;
* `backbone_source`: which backbone they were trained on, and `backbone_sha256` to prove that it is the same one.

Tensors are named as in `SeeCoder.state_dict()`; names that begin with `backbone.` are the frozen part and never there.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from seecoder.export.run_folder import is_complete, marker_path, newest_checkpoint
from seecoder.weights.pickles import unpickling_reason
from seecoder.weights.safetensors_files import WeightsError

BACKBONE_PREFIX = "backbone."
_TRAINABLE, _EMA = "encoder_trainable", "ema"


@dataclass(frozen=True)
class TrainedEncoder:
    """The trained part of an encoder.

    Attributes:
        config: Keyword arguments of `SeeCoder`.
        trainable: Every tensor of the encoder outside the backbone, by its key in the state dict.
        ema: Running averages under the same keys (buffers may be left out), or None where training kept none.
        backbone_source: Where the frozen backbone is: a `.safetensors` file, a saved encoder's folder or a released
            file, or `timm:NAME` for timm's pretrained weights.
        backbone_sha256: `tensors_sha256` of the backbone's state dict in float32, or "" if unknown.
    """

    config: dict[str, Any]
    trainable: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor] | None = None
    backbone_source: str = ""
    backbone_sha256: str = ""


def read_trained(path: str | Path) -> TrainedEncoder:
    """Read the trained part of an encoder.

    Args:
        path: A checkpoint that training wrote (`.ckpt`), or the folder of a run, whose newest whole checkpoint is read.

    Returns:
        The trained part; tensors on the CPU.

    Raises:
        FileNotFoundError: There is no such file, or no whole checkpoint in the folder.
        WeightsError: The file is damaged or something else, or holds objects that are neither tensors nor plain values.
    """
    file = find_checkpoint(Path(path))
    loaded = read_checkpoint(file)
    entries = loaded.get("seecoder") if isinstance(loaded, dict) else None
    if not isinstance(entries, dict) or _TRAINABLE not in entries or "encoder_config" not in entries:
        raise WeightsError(f"`{file}` has no `encoder_config`, `{_TRAINABLE}`; it is not a checkpoint of an encoder.")
    trainable, ema = dict(entries[_TRAINABLE]), dict(entries.get(_EMA) or {})
    if not trainable:
        raise WeightsError(f"`{file}` holds no trained tensors.")
    if frozen := [key for key in trainable if key.startswith(BACKBONE_PREFIX)]:
        raise WeightsError(
            f"`{file}` holds {len(frozen)} backbone tensors (first: {frozen[0]}); expected trained ones only."
        )
    if stray := sorted(set(ema) - set(trainable)):
        raise WeightsError(f"`{file}` averages {len(stray)} tensors that were not trained (first: {stray[0]}).")
    return TrainedEncoder(
        config={key: value for key, value in entries["encoder_config"].items() if not key.startswith("_")},
        trainable=trainable,
        ema=ema or None,
        backbone_source=str(entries.get("backbone_source") or ""),
        backbone_sha256=str(entries.get("backbone_sha256") or ""),
    )


def find_checkpoint(path: Path) -> Path:
    """Find the checkpoint that a path names: the file itself, or the newest whole one of a run's folder.

    Raises:
        FileNotFoundError: There is none.
        WeightsError: The file does not match the checksum beside it.
    """
    if path.is_dir():
        newest = newest_checkpoint(path)
        if newest is None:
            raise FileNotFoundError(
                f"`{path}` holds no whole checkpoint (step-*.ckpt with its .sha256); give the file itself."
            )
        return newest
    if not path.is_file():
        raise FileNotFoundError(f"`{path}` does not exist; give the checkpoint that training wrote.")
    # A torch file carries no checksum of its own; training writes one beside it.
    if marker_path(path).is_file() and not is_complete(path):
        raise WeightsError(
            f"`{path}` does not match its checksum file; it was damaged or cut. Use an older checkpoint."
        )
    return path


class _Unread(torch.Tensor):
    """A tensor of torchao in an optimizer's state: nobody needs it here, where torchao may not be installed."""

    __torch_dispatch__: Any = None


def read_checkpoint(file: Path) -> Any:
    """Read what training saved: tensors and plain values, whatever package keeps its optimizer's state.

    Raises:
        WeightsError: The file is damaged, or holds objects of classes that are not known here.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        with torch.serialization.safe_globals([(_Unread, name) for name in names if name.startswith("torchao.")]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises half a dozen types here (unpickling, zip, key errors); all mean the same to the user.
        reason = unpickling_reason(error)
        raise WeightsError(f"`{file}` cannot be read as a checkpoint of tensors and plain values: {reason}") from error
