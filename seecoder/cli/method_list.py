"""`--method list`: every way to sample, what it is, sets, goes with and costs; read from the source, without torch."""

import argparse
import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seecoder.presets import PRESETS, Size, count_windows, preset_settings

_METHODS = Path(__file__).resolve().parents[1] / "sampling" / "methods"
_PARTS = {"StagesMethod": "stages", "NetworkMethod": "network", "MultiDiffusion": "windows", "SyncDiffusion": "editor"}
_NOT_SET_HERE = ("loss", "regions")  # a function; what `--region` gives
_NATIVE = 512  # pixels a side, where the base does not tell


@dataclass(frozen=True)
class MethodFacts:
    """What the source says of a method.

    Attributes:
        name: As `--method` takes it.
        part: "stages", "network", "windows" or "editor"; methods of one part do not go together.
        starts_whole: Of stages: whether windows may be synchronised in the first.
        about: One line.
        options: Name, default and meaning of each setting.
    """

    name: str
    part: str
    starts_whole: bool
    about: str
    options: list[tuple[str, str, str]]

    def goes_with(self, other: "MethodFacts") -> bool:
        """Whether both make a list of methods."""
        parts = {self.part: self, other.part: other}
        return len(parts) == 2 and ("editor" not in parts or "stages" not in parts or parts["stages"].starts_whole)


def read_methods() -> list[MethodFacts]:
    """All methods, by name."""
    found = []
    for path in _METHODS.rglob("*.py"):
        module = ast.parse(path.read_text(encoding="utf-8"))
        for node in module.body:
            names = [base.id for base in getattr(node, "bases", []) if isinstance(base, ast.Name)]
            part = next((_PARTS[name] for name in [*names, getattr(node, "name", "")] if name in _PARTS), None)
            if isinstance(node, ast.ClassDef) and part is not None:
                about = (ast.get_docstring(module) or "").partition("\n")[0].partition(": ")[2]
                found.append(_facts(node, part, about))
    return sorted(found, key=lambda facts: facts.name)


def _facts(node: ast.ClassDef, part: str, about: str) -> MethodFacts:
    entries = re.split(r"\n    (\w+): ", (ast.get_docstring(node) or "").partition("Attributes:")[2])
    meanings = {name: " ".join(text.split()) for name, text in zip(entries[1::2], entries[2::2], strict=True)}
    fields = {
        entry.target.id: ast.unparse(entry.value)
        for entry in node.body
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name) and entry.value is not None
    }
    options = [(name, fields[name], text) for name, text in meanings.items() if name not in _NOT_SET_HERE]
    return MethodFacts(node.name.lower(), part, fields.get("starts_whole") == "True", about, options)


def describe_methods(arguments: argparse.Namespace) -> str:
    """What `--method list` prints, at the size, steps and guidance of the other options."""
    native = _native_size(arguments.base)
    height = arguments.height or native[0]
    size, steps = (height, arguments.width or native[1]), arguments.steps
    given: dict[str, Any] = {"steps": steps, "branches": 1 if arguments.guidance == 1 else 2}
    lines = [
        f"At {size[0]}x{size[1]} pixels, native size {native[0]}x{native[1]}, {steps} steps, guidance "
        f"{arguments.guidance:g}. Windows: how often, about, the network sees a native-sized window for a picture.",
        "",
        "presets, by the size:                            windows",
    ]
    for preset in PRESETS:
        names, settings = preset_settings(preset, size, native, steps)
        chosen = " ".join([names or "plain", *(f"{name}={value}" for name, value in settings.items())])
        lines.append(f"  {preset:<14}{count_windows(names, size, native, settings=settings, **given):>10,}  {chosen}")
    lines.append(f"  {'plain':<14}{count_windows('', size, native, **given):>10,}  the whole picture at once")
    methods = read_methods()
    for method in methods:
        with_others = ", ".join(other.name for other in methods if method.goes_with(other))
        lines += ["", f"  {method.name:<14}{count_windows(method.name, size, native, **given):>10,}  {method.about}"]
        lines.append(f"{'':<28}goes with {with_others}")
        lines += [f"      {f'{name}={default}':<34}{meaning}" for name, default, meaning in method.options]
    return "\n".join(lines)


def _native_size(base: str | None) -> Size:
    """(height, width) in pixels that a base in a folder was trained at; of others the usual one."""
    try:
        side = json.loads((Path(base or "") / "unet" / "config.json").read_text(encoding="utf-8"))["sample_size"]
        vae = json.loads((Path(base or "") / "vae" / "config.json").read_text(encoding="utf-8"))
        cell = 2 ** (len(vae["block_out_channels"]) - 1)
        height, width = (side, side) if isinstance(side, int) else side
    except (OSError, ValueError, KeyError, TypeError):
        return _NATIVE, _NATIVE
    return height * cell, width * cell
