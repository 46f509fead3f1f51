"""What benchmarks and evaluations do with results: say what they were made with, keep them, print tables."""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from seecoder.weights.atomic import atomic_path


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of packages; "none" for one that is not installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """Keep what is measured so far, whole or not at all: it must not be lost with what comes after it.

    Args:
        path: The file; None keeps nothing.
        content: What JSON can hold.
    """
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")


def markdown(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """A table in Markdown.

    Args:
        rows: Cells by column; what a row lacks stays empty.
        columns: Which ones, in order; those of the first row by default.
    """
    names = list(columns or rows[0])
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    return "\n".join(lines + ["| " + " | ".join(_cell(row.get(name)) for name in names) + " |" for row in rows])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,.3g}" if isinstance(value, float) else str(value)
