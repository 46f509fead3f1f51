"""Pickled weights (`.pth`, `.ckpt`, `.bin`), read as tensors and nothing else, where a user allows it."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seecoder.weights.safetensors_files import WeightsError, check_file

_CALLBACK = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"


class _Callback:
    """Takes the place of `_CALLBACK`, a key beside the weights."""


def read_pickle_allowed(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a pickle, for `seecoder import --allow-pickle` and nothing else.

    Only with torch's restricted unpickler (`weights_only=True`), which builds tensors and plain containers and refuses
    everything else. It keeps a file from running code as far as torch knows how; it is no sandbox. The name of
    Lightning's callback that Stable Diffusion's own checkpoints mention stands for a class that does nothing.

    Args:
        path: A checkpoint of tensors by name, bare or under `state_dict` or `model`; or a single tensor without a name.

    Raises:
        FileNotFoundError: If there is no such file.
        WeightsError: If it needs more than the restricted unpickler gives, or holds anything but tensors.
    """
    path = Path(path)
    check_file(path)
    _refuse_compressed_archive(path)
    try:
        with torch.serialization.safe_globals([(_Callback, _CALLBACK)]):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    # What the unpickler raises on hostile bytes is open-ended; whatever it is, nothing was loaded.
    except Exception as error:
        raise WeightsError(
            f"`{path}` cannot be read by torch's restricted unpickler, and nothing less safe is tried: "
            f"{unpickling_reason(error)}"
        ) from None
    if isinstance(content, Tensor):
        content = {"tensor": content}
    for _ in range(3):
        found = [content.get(key) for key in ("state_dict", "model")] if isinstance(content, dict) else []
        content = next((inner for inner in found if isinstance(inner, dict)), content)
    return _only_tensors(path, content)


def unpickling_reason(error: Exception) -> str:
    """Tell why torch could not read a pickle, without its advice to read it unsafely.

    Args:
        error: What `torch.load` raised.
    """
    text = str(error).strip().rpartition("WeightsUnpickler error: ")[2] or type(error).__name__
    return text.splitlines()[0].partition(" was not an allowed global")[0]


def _only_tensors(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, dict) or not content:
        raise WeightsError(f"`{path}` holds a {type(content).__name__}, not tensors by name.")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout is not torch.strided:
            raise WeightsError(
                f"`{path}` holds more than dense tensors: {name!r} is a {type(value).__name__}. "
                "Save its state dict alone and import that."
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise WeightsError(f"`{path}`: {name!r} claims {value.numel():,} elements, more than the file stores.")
    return {name: value.detach() for name, value in content.items()}


def _refuse_compressed_archive(path: Path) -> None:
    """torch.save stores without compression; an archive that is compressed was made to unpack to something huge."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise WeightsError(f"`{path}` is a compressed archive, which torch.save does not write.")
