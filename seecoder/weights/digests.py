"""SHA-256 digests of files and of sets of tensors."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch


def file_sha256(*paths: Path) -> str:
    """Digest the bytes of a file, or of several files one after another.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Digest names, dtypes, shapes and bytes of a set of tensors, whatever their order.

    Args:
        tensors: A state dict.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
