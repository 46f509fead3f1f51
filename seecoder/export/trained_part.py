"""What training leaves behind: the trained part of an encoder, and where its frozen part came from.

A training run saves neither the frozen backbone nor the UNet. Its *trained file* therefore says three things: how the
encoder is built (`encoder_config`), the trained tensors (`encoder_trainable`, and `ema`, their running average), and
which backbone they were trained on (`backbone_source`, and `backbone_sha256` to prove that it is the same one). Two
containers hold them:

* safetensors: tensors named `encoder_trainable.KEY` and `ema.KEY`; the rest as strings in the header (config as JSON).
* a torch file (a Lightning checkpoint): the five names as entries of the dictionary, at the top or under `"seecoder"`;
  read with `weights_only=True`, so that plain values and tensors load and nothing else does.

KEY is the key in `SeeCoder.state_dict()`; keys that begin with `backbone.` are the frozen part and never in the file.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from seecoder.weights.safetensors_files import WeightsError, read_safetensors, write_safetensors

__all__ = ["BACKBONE_PREFIX", "TrainedEncoder", "read_trained", "tensors_sha256", "write_trained"]

BACKBONE_PREFIX = "backbone."
_FORMAT = "seecoder.trained"
_TRAINABLE, _EMA = "encoder_trainable", "ema"


@dataclass(frozen=True)
class TrainedEncoder:
    """The trained part of an encoder.

    Attributes:
        config: keyword arguments of `SeeCoder`.
        trainable: every tensor of the encoder outside the backbone, by its key in the state dict.
        ema: running averages under the same keys (buffers may be left out), or None where training kept none.
        backbone_source: where the frozen backbone is: a `.safetensors` file, a saved encoder's folder or a released
            file, or `timm:NAME` for timm's pretrained weights.
        backbone_sha256: `tensors_sha256` of the backbone's state dict in float32, or "" if unknown.
        metadata: further strings (step, seed, ...).
    """

    config: dict[str, Any]
    trainable: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor] | None = None
    backbone_source: str = ""
    backbone_sha256: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Digest names, dtypes, shapes and bytes of a set of tensors, whatever their order.

    Args:
        tensors: a state dict.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def write_trained(path: str | Path, trained: TrainedEncoder) -> None:
    """Write a trained file in the safetensors container, whole or not at all.

    Args:
        path: the file, ending in .safetensors.
        trained: what to write.
    """
    tensors = {f"{_TRAINABLE}.{key}": value.detach().cpu().contiguous() for key, value in trained.trainable.items()}
    for key, value in (trained.ema or {}).items():
        tensors[f"{_EMA}.{key}"] = value.detach().cpu().contiguous()
    header = {
        **trained.metadata,
        "format": _FORMAT,
        "version": "1",
        "encoder_config": json.dumps(trained.config, sort_keys=True),
        "backbone_source": trained.backbone_source,
        "backbone_sha256": trained.backbone_sha256,
    }
    write_safetensors(Path(path), tensors, header)


def read_trained(path: str | Path) -> TrainedEncoder:
    """Read a trained file in either container.

    Args:
        path: `.safetensors`, or a torch file (`.ckpt`, `.pt`) that holds the entries named in this module's header, or
            the folder of a run, whose newest whole checkpoint is read.

    Returns:
        The trained part; tensors on the CPU.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: the file is something else, or holds objects that are neither tensors nor plain values.
    """
    file = newest_checkpoint(Path(path)) if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"`{file}` is not a file; give the checkpoint that training wrote.")
    trained = _from_safetensors(file) if file.suffix == ".safetensors" else _from_torch(file)
    frozen = [key for key in trained.trainable if key.startswith(BACKBONE_PREFIX)]
    if frozen:
        raise WeightsError(
            f"`{file}` holds {len(frozen)} backbone tensors (first: {frozen[0]}); expected trained ones only."
        )
    stray = sorted(set(trained.ema or {}) - set(trained.trainable))
    if stray:
        raise WeightsError(f"`{file}` averages {len(stray)} tensors that were not trained (first: {stray[0]}).")
    return trained


def best_checkpoint(folder: Path) -> Path:
    """Find the checkpoint that was best in validation.

    Args:
        folder: the run's folder, in which training keeps `best.json` while `keep_best` is set.

    Raises:
        FileNotFoundError: none was chosen, or it is not there any more.
        WeightsError: `best.json` is damaged.
    """
    note = folder / "best.json"
    if not note.is_file():
        raise FileNotFoundError(f"`{folder}` has no best.json: the run chose no best checkpoint (`run.keep_best`).")
    try:
        found = folder / str(json.loads(note.read_text())["checkpoint"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise WeightsError(f"`{note}` is damaged ({error!r}); name the checkpoint itself.") from None
    if not _marker(found).is_file():
        raise FileNotFoundError(f"`{found}`, which `{note}` names, is not there; name another checkpoint.")
    return found


def newest_checkpoint(folder: Path) -> Path:
    """Find the newest whole checkpoint of a run.

    Args:
        folder: the run's folder, or its folder of checkpoints (`step-00001000.ckpt`, each with a `.sha256` beside it).

    Returns:
        The checkpoint with the highest step whose checksum file exists.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [path for path in folder.rglob("step-*.ckpt") if _marker(path).is_file()]
    if not found:
        raise FileNotFoundError(
            f"`{folder}` holds no whole checkpoint (step-*.ckpt with its .sha256); give the file itself."
        )
    return max(found, key=lambda path: path.name)


def _marker(file: Path) -> Path:
    return file.with_name(file.name + ".sha256")


def _check_marker(file: Path) -> None:
    """A torch file carries no checksum of its own; training writes one beside it."""
    if not _marker(file).is_file():
        return
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != _marker(file).read_text().strip():
        raise WeightsError(
            f"`{file}` does not match its checksum file; it was damaged or cut. Use an older checkpoint."
        )


def _from_safetensors(file: Path) -> TrainedEncoder:
    tensors, metadata = read_safetensors(file)
    if metadata.get("format") != _FORMAT:
        raise WeightsError(f"`{file}` is not a training checkpoint (format {metadata.get('format')!r}).")
    groups: dict[str, dict[str, torch.Tensor]] = {_TRAINABLE: {}, _EMA: {}}
    for name, tensor in tensors.items():
        group, _, key = name.partition(".")
        if group not in groups or not key:
            raise WeightsError(f"`{file}` holds an unknown tensor `{name}`; expected {_TRAINABLE}.* and {_EMA}.*.")
        groups[group][key] = tensor
    return _assemble(file, {**metadata, **groups, "encoder_config": json.loads(metadata["encoder_config"])})


def _from_torch(file: Path) -> TrainedEncoder:
    _check_marker(file)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises half a dozen types here (unpickling, zip, key errors); all mean the same to the user.
        reason = str(error).splitlines()[0]
        raise WeightsError(f"`{file}` cannot be read as a checkpoint of tensors and plain values: {reason}") from error
    entries = loaded.get("seecoder", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(entries, dict) or _TRAINABLE not in entries or "encoder_config" not in entries:
        raise WeightsError(
            f"`{file}` has no `encoder_config` and `{_TRAINABLE}`; it is not a checkpoint of an encoder."
        )
    return _assemble(file, entries)


def _assemble(file: Path, entries: Mapping[str, Any]) -> TrainedEncoder:
    if not entries[_TRAINABLE]:
        raise WeightsError(f"`{file}` holds no trained tensors.")
    return TrainedEncoder(
        config={key: value for key, value in entries["encoder_config"].items() if not key.startswith("_")},
        trainable=dict(entries[_TRAINABLE]),
        ema=dict(entries[_EMA]) if entries.get(_EMA) else None,
        backbone_source=str(entries.get("backbone_source") or ""),
        backbone_sha256=str(entries.get("backbone_sha256") or ""),
        metadata={key: value for key, value in entries.items() if isinstance(value, str)},
    )
