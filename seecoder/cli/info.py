"""Say what a file or folder of weights is: variant, configuration, counts, dtype, checksum.

Works on released files, exported encoders, training checkpoints, cached contexts, and whole pipelines or bases. Nothing
is loaded that is not needed for the answer.
"""

import argparse
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from seecoder.cli.console import say

HELP = "say what a file or folder of weights is"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("path", metavar="FILE_OR_FOLDER", help="what to look at")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> None:
    """Look and print."""
    path = Path(arguments.path)
    if not path.exists():
        raise FileNotFoundError(f"`{path}`: no such file or folder.")
    facts = describe(path)
    if arguments.json:
        print(json.dumps(facts, indent=2, default=str))
        return
    lines = _lines(facts)
    width = max(len(name) for name, _ in lines) + 2
    for name, value in lines:
        print(f"{name:<{width}}{value}")


def _lines(facts: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict):
            lines += _lines(value, f"{prefix}{name}.")
        else:
            lines.append(
                (prefix + name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))
            )
    return lines


def describe(path: Path) -> dict[str, Any]:
    """Collect what there is to say.

    Args:
        path: an existing file or folder.

    Raises:
        WeightsError: a file that is no weights file.
        FileNotFoundError: a folder without weights.
    """
    if path.is_file():
        return _describe_file(path)
    if (path / "model_index.json").is_file():
        index = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
        parts = [entry.name for entry in sorted(path.iterdir()) if entry.is_dir() and any(entry.glob("*.safetensors"))]
        return {"kind": str(index.get("_class_name")), **{name: _describe_folder(path / name) for name in parts}}
    if any(path.rglob("step-*.ckpt")):
        from seecoder.export.trained_part import newest_checkpoint

        newest = newest_checkpoint(path)
        return {"newest checkpoint": str(newest), **_describe_file(newest)}
    return _describe_folder(path)


def _describe_folder(path: Path) -> dict[str, Any]:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"`{path}` holds no safetensors files.")
    config = json.loads((path / "config.json").read_text(encoding="utf-8")) if (path / "config.json").is_file() else {}
    headers = [_read_header(file)[0] for file in files]
    counted = _count({name: entry for header in headers for name, entry in header.items()})
    facts = {"kind": config.get("_class_name", "unknown"), **counted}
    if facts["kind"] == "SeeCoder":
        facts["variant"] = "position-aware" if config.get("position_aware") else "plain"
    shown = {key: value for key, value in config.items() if not key.startswith("_")}
    return {**facts, "sha256": _digest(files), "config": {key: json.dumps(value) for key, value in shown.items()}}


def _describe_file(path: Path) -> dict[str, Any]:
    if path.suffix != ".safetensors":
        return _describe_checkpoint(path)
    header, metadata = _read_header(path)
    from seecoder.encoder.official import PREFIX, is_position_aware

    kind = metadata.get("format") or "safetensors"
    facts: dict[str, Any] = {}
    if any(key.startswith(PREFIX) for key in header):
        kind = "released SeeCoder layout"
        facts["variant"] = "position-aware" if is_position_aware(header) else "plain"
    facts |= _count(header)
    shapes = {"shape": header["context"]["shape"]} if kind == "seecoder.context" else {}
    return {"kind": kind, **facts, **shapes, "sha256": _digest([path]), "metadata": metadata}


def _describe_checkpoint(path: Path) -> dict[str, Any]:
    """A torch file: only a training checkpoint is opened, and only as tensors."""
    from seecoder.export.trained_part import read_trained

    trained = read_trained(path)
    return {
        "kind": "training checkpoint",
        "tensors": len(trained.trainable),
        "parameters": sum(tensor.numel() for tensor in trained.trainable.values() if tensor.is_floating_point()),
        "average": "yes" if trained.ema else "no",
        "backbone": trained.backbone_source or "not recorded",
        "backbone sha256": trained.backbone_sha256 or "not recorded",
        "sha256": _digest([path]),
        "config": {key: json.dumps(value) for key, value in trained.config.items()},
    }


def _read_header(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Read names, dtypes and shapes without the tensors."""
    from safetensors import SafetensorError, safe_open

    from seecoder.weights.safetensors_files import WeightsError

    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
            header = {name: {"dtype": part.get_dtype(), "shape": part.get_shape()} for name, part in slices.items()}
            return header, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"`{path}` is not a readable safetensors file: {error}") from error


def _count(header: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Tensors, parameters (entries of floating-point tensors) and dtypes."""
    dtypes = Counter(entry["dtype"] for entry in header.values())
    parameters = 0
    for entry in header.values():
        size = 1
        for side in entry["shape"]:
            size *= side
        parameters += size if entry["dtype"].startswith(("F", "BF")) else 0
    return {
        "tensors": len(header),
        "parameters": parameters,
        "dtype": ", ".join(f"{name} x {count}" for name, count in dtypes.most_common()),
    }


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    if sum(file.stat().st_size for file in files) > 2**30:
        say("reading the whole file for its checksum")
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(2**20):
                digest.update(chunk)
    return digest.hexdigest()
