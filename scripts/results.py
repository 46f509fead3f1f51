"""What benchmarks and evaluations do with results: say what they were made with, keep them, print tables."""

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from seecoder.weights.atomic import write_text


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of packages; "none" for one that is not installed."""
    found = {name: version(name) if find_spec(name) else "none" for name in packages}
    return {"python": platform.python_version()} | found


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """Keep what is measured so far, whole or not at all: it must not be lost with what comes after it.

    Args:
        path: The file; None keeps nothing.
        content: What JSON can hold.
    """
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(content, indent=1) + "\n")


def markdown(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str] = (),
    cell: Callable[[str, Any], str] | None = None,
    to_the_right: bool = False,
) -> str:
    """A table in Markdown.

    Args:
        rows: Cells by column; what a row lacks stays empty.
        columns: Which ones, in order; those of the first row by default.
        cell: Text of a value by its column; three digits of a number by default.
        to_the_right: Align all columns but the first to the right.
    """
    names, text = list(columns or rows[0]), cell or _three_digits
    line = "|---" + ("|---:" if to_the_right else "|---") * (len(names) - 1) + "|"
    lines = ["|" + "".join(f" {name} |" if name else " |" for name in names), line]
    for row in rows:
        cells = ("" if row.get(name) is None else text(name, row[name]) for name in names)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _three_digits(name: str, value: Any) -> str:
    return f"{value:,.3g}" if isinstance(value, float) else str(value)
