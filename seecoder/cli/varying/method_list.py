"""`--method list`: every way to sample, what it is, sets, goes with and costs; read from the source, without torch."""

import argparse
import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seecoder.cli.varying.early_checks import base_pixels
from seecoder.presets import PRESETS, count_windows, preset_settings

_METHODS = Path(__file__).resolve().parents[2] / "sampling" / "methods"
_PARTS = {"StagesMethod": "stages", "NetworkMethod": "network", "MultiDiffusion": "windows", "SyncDiffusion": "editor"}
_NOT_SET_HERE = ("regions",)  # what `--region` gives


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
    native = base_pixels(arguments.base)[:2]
    height = arguments.height or native[0]
    size, steps = (height, arguments.width or native[1]), arguments.steps
    given: dict[str, Any] = {"steps": steps, "branches": 1 + (arguments.guidance is None or arguments.guidance > 1)}
    guidance = "on" if arguments.guidance is None else f"{arguments.guidance:g}"
    lines = [
        f"At {size[0]}x{size[1]} pixels, native size {native[0]}x{native[1]}, {steps} steps, guidance {guidance}. "
        "Windows: how often, about, the network sees a native-sized window for a picture.",
        "",
        "presets, by the size:                            windows",
    ]

    def add(name: str, methods: str, about: str, **settings: Any) -> None:
        windows = count_windows(methods, size, native, settings=settings, **given)
        lines.append(f"  {name:<14}{windows:>10,}  {about}")

    for preset in PRESETS:
        names, settings = preset_settings(preset, size, native, steps)
        chosen = " ".join([names or "plain", *(f"{name}={value}" for name, value in settings.items())])
        add(preset, names, chosen, **settings)
    add("plain", "", "the whole picture at once")
    methods = read_methods()
    for method in methods:
        with_others = ", ".join(other.name for other in methods if method.goes_with(other))
        lines.append("")
        add(method.name, method.name, method.about)
        lines.append(f"{'':<28}goes with {with_others}")
        lines += [f"      {f'{name}={default}':<34}{meaning}" for name, default, meaning in method.options]
    return "\n".join(lines)


def check_methods(names: str | None, options: Sequence[tuple[str, Any]]) -> None:
    """Refuse names of methods and of settings that do not exist, without importing the methods.

    Args:
        names: What `--method` gave.
        options: What `--method-option` gave.

    Raises:
        ValueError: There is none of that name.
    """
    methods = {facts.name: [option for option, *_ in facts.options] for facts in read_methods()}
    chosen = [name.strip().lower() for name in (names or PRESETS[0]).split(",")]
    known = ("plain", *PRESETS, *methods)
    for name in chosen:
        if name not in known or (name not in methods and len(chosen) > 1):
            raise ValueError(f"`--method`={name!r} does not exist; choose from {', '.join(known)}.")
    for key, _ in options:
        if chosen[0] not in methods:
            raise ValueError(f"`--method-option` {key} has no effect without `--method` that names methods.")
        if not any(key.rpartition(".")[2] in methods[name] for name in chosen):
            there = "; ".join(f"{name}: {', '.join(methods[name])}" for name in chosen)
            raise ValueError(f"`--method-option` {key} is unknown. Settings are {there}.")
