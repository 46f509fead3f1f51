"""The table of methods on disk: cells that are measured once, kept when a run is cut short, and read by people."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from filelock import FileLock

from scripts.evaluation.highres import Factor, Row
from scripts.results import markdown, write_json

_COST = {"windows": "windows", "seconds": "s", "pictures": "n"}
PERCENT = ("count", "kept", "shape", "hue", "texture", "background", "all")
COLUMNS = {
    "count": "one object %",
    "kept": "of native's %",
    "objects": "objects",
    "specks": "specks",
    "horizons": "horizons",
    "shape": "shape %",
    "hue": "hue %",
    "texture": "texture %",
    "background": "background %",
    "all": "all right %",
    "spectrum": "spectrum dB",
    **_COST,
}
PANORAMA_COLUMNS = {
    "hue_spread": "hue spread, degrees",
    "objects": "objects a window",
    "seam": "seam",
    "horizons": "horizons",
    **_COST,
}


def factor_name(factor: Factor) -> str:
    """Name a size: "2x1" is twice as wide as native and just as high, "2x" is twice as both."""
    rows, columns = factor
    return f"{columns}x" if rows == columns else f"{columns}x{rows}"


def parsed_factor(name: str) -> Factor:
    """The (rows, columns) of "2", "2x" or "4x1".

    Raises:
        ValueError: Something else.
    """
    width, _, height = name.strip().lower().partition("x")
    if not width.isdigit() or (height and not height.isdigit()) or int(width) < 1 or (height and int(height) < 1):
        raise ValueError(
            f"`--factors` {name!r} is none; write 2 for twice the native side, 4x1 for four times as wide."
        )
    return (int(height) if height else int(width), int(width))


def described(method: Any) -> str:
    """A method's settings, the same in every process: a function's `repr` names where it lies in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(method))


def fingerprint(**settings: Any) -> str:
    """A short name for everything that a cell's numbers depend on, the number of pictures left out."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=described).encode()).hexdigest()[:16]


class Report:
    """The cells measured so far, kept in one JSON file that several processes may fill at once.

    Args:
        path: The file; what it holds already is kept.

    Raises:
        ValueError: The file is no report.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = self._read()

    def _read(self) -> dict[str, Any]:
        empty: dict[str, Any] = {"about": {}, "cells": {}, "panoramas": {}}
        if not self.path.is_file():
            return empty
        try:
            found = json.loads(self.path.read_text())
            return {key: dict(found[key]) for key in empty}
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path} is no report of this script ({error}); move it away.") from error

    def _alone(self) -> FileLock:
        """Keep other processes out while the file is read and written; given back by the system if we are killed."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path.with_name(f".{self.path.name}.lock"))

    def describe(self, **about: Any) -> None:
        """Say how the cells come about; `commands` are added to those that are there, all else is replaced."""
        with self._alone():
            self.content = self._read()
            earlier = self.content["about"].get("commands", [])
            commands = list(dict.fromkeys([*earlier, *about.pop("commands", [])]))
            self.content["about"] = about | {"commands": commands}
            write_json(self.path, self.content)

    def has(self, part: str, group: str, label: str, mark: str, pictures: int) -> bool:
        """Whether a cell is there already, measured the same way on at least so many pictures."""
        self.content = self._read()
        cell = self.content[part].get(group, {}).get(label, {})
        return cell.get("fingerprint") == mark and cell.get("pictures", 0) >= pictures

    def put(self, part: str, group: str, label: str, cell: Mapping[str, Any]) -> None:
        """Keep a cell, on disk at once, beside those that other processes have put there."""
        with self._alone():
            self.content = self._read()
            self.content[part].setdefault(group, {})[label] = dict(cell)
            write_json(self.path, self.content)

    def markdown(self, rows: Sequence[Row]) -> str:
        """All cells as tables, one for each size."""
        order = [row.label for row in rows]
        parts = []
        found = {parsed_factor(group): (group, cells) for group, cells in self.content["cells"].items()}
        for _, (group, cells) in sorted(found.items(), key=lambda entry: (entry[0][0] != entry[0][1], prod(entry[0]))):
            native = self.content["cells"].get("1x", {}).get("plain", {}).get("each", [])
            counted = {label: cell | {"kept": kept(cell.get("each", []), native)} for label, cell in cells.items()}
            parts.append(f"### {group}\n\n" + table(counted, COLUMNS, order))
        for group, cells in self.content["panoramas"].items():
            parts.append(f"### panoramas, {group}\n\n" + table(cells, PANORAMA_COLUMNS, list(cells)))
        return "\n\n".join(parts) + "\n"


def kept(each: Sequence[int], native: Sequence[int]) -> float | None:
    """Share with one object among the pictures whose native sample, of the same noise, has one; None where none is."""
    pairs = zip(each, native, strict=False)  # a cell may have more pictures than another
    counts = [count for count, first in pairs if first == 1]
    return sum(count == 1 for count in counts) / len(counts) if counts else None


def table(cells: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str], order: Sequence[str]) -> str:
    """Markdown of named cells; rows that `order` does not know come last."""
    known = {label: place for place, label in enumerate(order)}
    labels = sorted(cells, key=lambda label: known.get(label, len(known)))
    names = {title: name for name, title in columns.items()}
    rows = [{"": label} | {title: cells[label].get(name) for title, name in names.items()} for label in labels]
    return markdown(rows, ("", *names), lambda title, value: _formatted(names.get(title, ""), value), to_the_right=True)


def _formatted(name: str, value: Any) -> str:
    if name in ("", "pictures"):
        return str(value)
    if name in PERCENT:
        return f"{100 * value:.1f}"
    return f"{value:.0f}" if name == "windows" else f"{value:.2f}"
