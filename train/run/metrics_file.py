"""`metrics.csv` of a run: one line for each figure.

Ours, because Lightning's `CSVLogger` starts a new file at each start, while a continued run has to go on in the same
one, without the lines that an interrupted run wrote after its last checkpoint.
"""

import csv
import math
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from seecoder.weights.atomic import atomic_path

_HEADER = ["step", "metric", "value"]


def read_metrics(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Read `metrics.csv`: by metric, (step, value) in the order of writing, without half-written lines."""
    found: dict[str, list[tuple[int, float]]] = {}
    for (step, name, _), value in _read_rows(path):
        found.setdefault(name, []).append((int(step), value))
    return found


def _read_rows(path: Path) -> Iterator[tuple[list[str], float]]:
    """Rows that are whole, each with its value; the header, half a line or what a power cut left is passed over."""
    text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "\ufffd")
    for row in csv.reader(text.splitlines()):
        try:
            int(row[0])
            value = float(row[2])
        except (IndexError, ValueError):
            continue
        if len(row) == 3:
            yield row, value


def best_of(path: Path, metric: str, steps: Collection[int]) -> tuple[int, float] | None:
    """Step with the lowest finite value of a metric, and the value.

    Args:
        path: `metrics.csv`.
        metric: Its name.
        steps: Steps that count, such as those with a checkpoint.
    """
    values = {step: value for step, value in read_metrics(path).get(metric, ()) if step in steps}
    finite = [(value, step) for step, value in values.items() if math.isfinite(value)]
    return (min(finite)[1], min(finite)[0]) if finite else None


class MetricsFile:
    """Appends to `metrics.csv`; a continued run first cuts what an interrupted one wrote after its last checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unwritten: list[list[str]] = []  # what the disk had no place for

    def cut_after(self, step: int) -> None:
        """Forget lines of later steps, and start the file if there is none."""
        found = [row for row, _ in _read_rows(self.path)] if self.path.exists() else []
        rows = [row for row in found if int(row[0]) <= step]
        if len(rows) < len(found):
            print(f"note: {len(found) - len(rows):,} lines of {self.path} after step {step} are cut", flush=True)
        try:
            with atomic_path(self.path) as temporary, temporary.open("w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([_HEADER, *rows])
        except OSError as error:
            print(f"{self.path.name} NOT CUT after step {step}: {error}; training goes on", flush=True)

    def append(self, step: int, figures: dict[str, float]) -> None:
        """Write one line for each figure. A full disk costs no line: it comes with the next that can be written."""
        self._unwritten += [[str(step), name, f"{value:.6g}"] for name, value in figures.items()]
        try:
            length = self.path.stat().st_size if self.path.exists() else 0
            try:
                with self.path.open("a", newline="") as file:
                    header = [] if length else [_HEADER]  # the disk may have been full from the start
                    csv.writer(file, lineterminator="\n").writerows([*header, *self._unwritten])
            except OSError:
                os.truncate(self.path, length)  # no half lines, and none twice
                raise
        except OSError as error:
            print(f"NOT LOGGED at step {step}: {error}; training goes on", flush=True)
        else:
            self._unwritten = []
