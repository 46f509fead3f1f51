"""Tensors into a module: every name and shape fits, or nothing changes."""

from collections.abc import Mapping, Sequence
from typing import Any

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
    check_fit(tensors, expected, source=source, target=type(module).__name__)
    on_meta = any(isinstance(wanted, Tensor) and wanted.is_meta for wanted in expected.values())
    module.load_state_dict(dict(tensors), strict=True, assign=on_meta)


def check_fit(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Any], *, source: str, target: str, hint: str = ""
) -> None:
    """Compare names and shapes of tensors with those that are expected.

    Args:
        tensors: What was read.
        expected: A state dict; entries that are no tensors (`get_extra_state`) need only be there.
        source: The file, for the message.
        target: What the tensors are for, for the message.
        hint: A sentence that ends the message.

    Raises:
        WeightsError: They differ.
    """
    mismatched = [
        f"{name} is {_kind(tensors[name])} where {_kind(wanted)} is needed"
        for name, wanted in expected.items()
        if name in tensors and isinstance(wanted, Tensor) and _kind(tensors[name]) != _kind(wanted)
    ]
    refuse_differences(
        missing=[name for name in expected if name not in tensors],
        unexpected=[name for name in tensors if name not in expected],
        mismatched=mismatched,
        source=source,
        target=target,
        hint=hint,
    )


def refuse_differences(
    *,
    missing: Sequence[str] = (),
    unexpected: Sequence[str] = (),
    mismatched: Sequence[str] = (),
    source: str,
    target: str,
    hint: str = "",
) -> None:
    """Raise an error that counts the differences between a file and what it is for, unless there are none.

    Args:
        missing: Weights that the file lacks.
        unexpected: Weights that the file has too much.
        mismatched: Weights of another shape, in words.
        source: The file.
        target: What it is for.
        hint: A sentence that ends the message.

    Raises:
        WeightsError: There is a difference.
    """
    problems = [
        _counted(missing, "weight is missing", "weights are missing"),
        _counted(unexpected, "is unexpected", "are unexpected"),
        _counted(mismatched, "does not fit", "do not fit"),
    ]
    if any(problems):
        raise WeightsError(f"`{source}` does not fit {target}: {'; '.join(filter(None, problems))}. {hint}".strip())


def refuse_report(report: Mapping[str, Any], *, source: str, target: str, hint: str = "") -> None:
    """Raise an error that counts the differences in diffusers' report of a loading, unless there are none.

    Args:
        report: What `from_pretrained(..., output_loading_info=True)` gives beside the model.
        source: The folder or repository.
        target: What it is for.
        hint: A sentence that ends the message.

    Raises:
        WeightsError: There is a difference.
    """
    kinds = ("missing", "unexpected", "mismatched")
    differences = {kind: sorted(map(str, report[f"{kind}_keys"])) for kind in kinds}
    refuse_differences(**differences, source=source, target=target, hint=hint)


def _kind(tensor: Tensor) -> str:
    """Shape, and what loading must not convert silently: integers to floats and back."""
    group = "" if tensor.is_floating_point() else " complex" if tensor.is_complex() else " integer"
    return f"{tuple(tensor.shape)}{group}"


def _counted(entries: Sequence[str], one: str, many: str) -> str:
    if not entries:
        return ""
    more = ", ..." if len(entries) > 3 else ""
    return f"{len(entries)} {one if len(entries) == 1 else many} ({', '.join(entries[:3])}{more})"
