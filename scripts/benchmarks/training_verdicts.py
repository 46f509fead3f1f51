"""Goals of `scripts/benchmarks/training.py`, and whether what was measured meets them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.benchmarks.training_levers import ALL

CPU_GOAL, GPU_GOAL = 2.0, 2.5  # all levers, times the naive loop
MFU_GOAL = 0.4  # of a GPU's peak, with all levers
LOADER_GOAL, LOADER_CORES = 2000.0, 8  # JPEG of 512 x 512 pixels a second, on so many cores


@dataclass(frozen=True)
class Verdict:
    """A figure and its goal.

    Attributes:
        what: What was measured.
        value: The figure; None where there is none because memory ran out.
        goal: Least value that meets the goal.
        note: What else belongs to it.
    """

    what: str
    value: float | None
    goal: float
    note: str = ""

    @property
    def is_met(self) -> bool:
        """Whether the goal is met; what could not be measured does not meet it."""
        return self.value is not None and self.value >= self.goal

    def __str__(self):
        value = "out of memory" if self.value is None else f"{self.value:.4g}"
        note = f" ({self.note})" if self.note else ""
        return f"{self.what}: {value}, goal {self.goal:g}: {'met' if self.is_met else 'NOT met'}{note}"


def training_verdicts(rows: Sequence[Mapping[str, Any]]) -> Iterator[Verdict]:
    """Say whether a workload meets its goals.

    Args:
        rows: As `Measurement.rows` gives them: the first about the whole, then one for each loop.
    """
    head, *loops = rows
    on_gpu = str(head["device"]).startswith("cuda")
    fast = next((row for row in loops if row["lever"] == ALL), None)
    what = f"{head['workload']}, {ALL}"
    ratio = None if fast is None else fast["ratio"]
    yield Verdict(f"{what}, times the naive loop", ratio, GPU_GOAL if on_gpu else CPU_GOAL)
    if on_gpu:  # the peak of a CPU is measured, and nothing is asked of it
        yield _utilisation(f"{what}, share of the peak", fast, head)


def _utilisation(what: str, fast: Mapping[str, Any] | None, head: Mapping[str, Any]) -> Verdict:
    peak = f"peak {head['peak_flops'] / 1e12:.0f} TFLOP/s, {head['peak_origin']}"
    if fast is None:
        return Verdict(what, None, MFU_GOAL, peak)
    speed = fast["images_per_second"]
    goal = speed * MFU_GOAL / fast["mfu"]
    return Verdict(what, fast["mfu"], MFU_GOAL, f"{speed:.1f} of {goal:.1f} images/s; {peak}")


def loader_verdict(per_core: float) -> Verdict:
    """Say whether the loader meets its goal.

    Args:
        per_core: JPEG of 512 x 512 pixels that one core reads in a second.
    """
    note = f"{per_core:.1f} on one core, if cores scale"
    what = f"loader, JPEG of 512 x 512 pixels a second on {LOADER_CORES} cores"
    return Verdict(what, LOADER_CORES * per_core, LOADER_GOAL, note)


def exit_code(verdicts: Iterable[Verdict]) -> int:
    """0 if every goal is met, else 1."""
    return int(not all(verdict.is_met for verdict in verdicts))
