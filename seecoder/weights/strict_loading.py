"""Tensors into a module: every name and shape fits, or nothing changes."""

from collections.abc import Mapping

from torch import Tensor, nn

from seecoder.weights.safetensors_files import WeightsError


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Load tensors into a module if every name and shape fits; otherwise change nothing.

    Args:
        module: Its parameters keep their dtype and device; those on the meta device are replaced by the tensors.
        tensors: Its state dict, complete.
        source: The file, for the message.

    Raises:
        WeightsError: Naming how many weights are missing, unexpected or of another shape, and the first three of each.
    """
    expected = module.state_dict()
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    mismatched = [
        f"{name} is {_kind(tensors[name])} where {_kind(wanted)} is needed"
        for name, wanted in expected.items()
        if name in tensors and isinstance(wanted, Tensor) and _kind(tensors[name]) != _kind(wanted)
    ]
    problems = [
        _counted(missing, "weight is missing", "weights are missing"),
        _counted(unexpected, "is unexpected", "are unexpected"),
        _counted(mismatched, "does not fit", "do not fit"),
    ]
    if missing or unexpected or mismatched:
        raise WeightsError(f"`{source}` does not fit {type(module).__name__}: {'; '.join(filter(None, problems))}.")
    on_meta = any(isinstance(wanted, Tensor) and wanted.is_meta for wanted in expected.values())
    module.load_state_dict(dict(tensors), strict=True, assign=on_meta)


def _kind(tensor: Tensor) -> str:
    """Shape, and what loading must not convert silently: integers to floats and back."""
    group = "" if tensor.is_floating_point() else " complex" if tensor.is_complex() else " integer"
    return f"{tuple(tensor.shape)}{group}"


def _counted(entries: list[str], one: str, many: str) -> str:
    if not entries:
        return ""
    more = ", ..." if len(entries) > 3 else ""
    return f"{len(entries)} {one if len(entries) == 1 else many} ({', '.join(entries[:3])}{more})"
