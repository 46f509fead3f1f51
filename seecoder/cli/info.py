"""Say what a file or folder of weights is: variant, configuration, counts, dtype, checksum.

Works on released files, exported encoders, training checkpoints, cached contexts, and whole pipelines or bases, also
those in one file. Nothing is loaded that is not needed for the answer.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seecoder.cli.console import say

if TYPE_CHECKING:
    from seecoder.weights.safetensors_files import TensorInfo

HELP = "say what a file or folder of weights is"
_LARGE_FILE = 2**30  # bytes; a checksum of more takes noticeable time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("path", metavar="FILE_OR_FOLDER", help="what to look at")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> None:
    """Look and print."""
    facts = describe(Path(arguments.path))
    if arguments.json:
        print(json.dumps(facts, indent=2, default=str))
        return
    lines = _flat(facts)
    width = max(map(len, lines)) + 2
    for name, value in lines.items():
        print(f"{name:<{width}}{value:,}" if isinstance(value, int) else f"{name:<{width}}{value}")


def _flat(facts: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    lines = {}
    for name, value in facts.items():
        lines |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return lines


def describe(path: Path) -> dict[str, Any]:
    """Collect what there is to say.

    Args:
        path: A file or folder.

    Raises:
        WeightsError: A file that is no weights file.
        FileNotFoundError: There is nothing, or a folder without weights.
    """
    from seecoder.export.run_folder import list_checkpoints
    from seecoder.export.trained_part import find_checkpoint

    if not path.exists():
        raise FileNotFoundError(f"`{path}` does not exist; give a file or folder of weights.")
    if path.is_file():
        return _describe_file(path)
    if (path / "model_index.json").is_file():
        index = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
        parts = [entry.name for entry in sorted(path.iterdir()) if entry.is_dir() and any(entry.glob("*.safetensors"))]
        return {"kind": str(index.get("_class_name")), **{name: _describe_folder(path / name) for name in parts}}
    if list_checkpoints(path):
        newest = find_checkpoint(path)
        return {"newest checkpoint": str(newest), **_describe_file(newest)}
    return _describe_folder(path)


def _describe_folder(path: Path) -> dict[str, Any]:
    from seecoder.weights.safetensors_files import read_header

    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"`{path}` holds no safetensors files.")
    config = json.loads((path / "config.json").read_text(encoding="utf-8")) if (path / "config.json").is_file() else {}
    tensors = {name: info for file in files for name, info in read_header(file)[0].items()}
    facts = {"kind": config.get("_class_name", "unknown"), **_count(tensors)}
    if facts["kind"] == "SeeCoder":
        facts["variant"] = "position-aware" if config.get("position_aware") else "plain"
    return {**facts, "sha256": _digest(files), "config": _as_json(config)}


def _describe_file(path: Path) -> dict[str, Any]:
    from seecoder.encoder.official import PREFIX, is_position_aware
    from seecoder.weights.safetensors_files import WeightsError, pickle_sign, read_header

    if path.suffix != ".safetensors":
        if not pickle_sign(path):
            raise WeightsError(f"`{path}` is no file of weights; give safetensors or a training checkpoint.")
        return _describe_checkpoint(path)
    from seecoder.base_model.single_file import SingleFile

    tensors, metadata = read_header(path)
    facts: dict[str, Any] = {"kind": metadata.get("format") or "safetensors"}
    if not facts["kind"].startswith("seecoder."):
        facts |= SingleFile.open(path).description()
    if any(key.startswith(PREFIX) for key in tensors):
        variant = "position-aware" if is_position_aware(tensors) else "plain"
        facts = {"kind": "released SeeCoder layout", "variant": variant}
    facts |= _count(tensors)
    if facts["kind"] == "seecoder.context":
        facts["shape"] = list(tensors["context"].shape)
    return {**facts, "sha256": _digest([path]), "metadata": metadata}


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
        "config": _as_json(trained.config),
    }


def _count(tensors: Mapping[str, "TensorInfo"]) -> dict[str, Any]:
    """Tensors, parameters (entries of floating-point tensors) and dtypes."""
    dtypes = Counter(info.dtype for info in tensors.values())
    return {
        "tensors": len(tensors),
        "parameters": sum(math.prod(info.shape) for info in tensors.values() if info.dtype.startswith(("F", "BF"))),
        "dtype": ", ".join(f"{name} x {count}" for name, count in dtypes.most_common()),
    }


def _as_json(config: Mapping[str, Any]) -> dict[str, str]:
    return {key: json.dumps(value) for key, value in config.items() if not key.startswith("_")}


def _digest(files: list[Path]) -> str:
    from seecoder.weights.digests import file_sha256

    if sum(file.stat().st_size for file in files) > _LARGE_FILE:
        say("reading the whole file for its checksum")
    return file_sha256(*files)
