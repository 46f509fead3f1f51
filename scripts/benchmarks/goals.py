"""The goals of the benchmarks, and whether what was measured meets them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CPU_SPEED_UP, GPU_SPEED_UP = 2.0, 2.5  # all levers of a training, times the naive loop
PEAK_FRACTION = 0.4  # of a GPU's peak, with all levers
SAMPLING_GIB = 12.0  # of GPU memory at 4096 x 4096 pixels
OVERHEAD_FRACTION = 0.05  # of a sampling run, outside UNet and VAE


@dataclass(frozen=True)
class Verdict:
    """A figure and its goal.

    Attributes:
        what: What was measured.
        value: The figure; None where there is none because memory ran out.
        goal: The bound that the figure is to keep.
        note: What else belongs to it.
        at_most: Whether the goal is an upper bound; it is a lower one otherwise.
    """

    what: str
    value: float | None
    goal: float
    note: str = ""
    at_most: bool = False

    @property
    def is_met(self) -> bool:
        """Whether the goal is met; what could not be measured does not meet it."""
        if self.value is None:
            return False
        return self.value <= self.goal if self.at_most else self.value >= self.goal

    def __str__(self) -> str:
        value = "out of memory" if self.value is None else f"{self.value:.4g}"
        note = f" ({self.note})" if self.note else ""
        bound = f"goal {'≤ ' if self.at_most else ''}{self.goal:g}"
        return f"{self.what}: {value}, {bound}: {'met' if self.is_met else 'NOT met'}{note}"


def training_verdicts(head: Mapping[str, Any], fast: Mapping[str, Any] | None) -> Iterator[Verdict]:
    """Say whether a training meets its goals.

    Args:
        head: `workload`, `device`, `peak_flops` and `peak_origin` of the measurement.
        fast: `ratio`, `images_per_second` and `mfu` of the loop with all levers; None if it ran out of memory.
    """
    on_gpu = str(head["device"]).startswith("cuda")
    what = f"{head['workload']}, all levers"
    ratio = None if fast is None else fast["ratio"]
    yield Verdict(f"{what}, times the naive loop", ratio, GPU_SPEED_UP if on_gpu else CPU_SPEED_UP)
    if not on_gpu:  # the peak of a CPU is measured, and nothing is asked of it
        return
    note = f"peak {head['peak_flops'] / 1e12:.0f} TFLOP/s, {head['peak_origin']}"
    if fast is not None:
        speed = fast["images_per_second"]
        note = f"{speed:.1f} of {speed * PEAK_FRACTION / fast['mfu']:.1f} images/s; {note}"
    yield Verdict(f"{what}, share of the peak", None if fast is None else fast["mfu"], PEAK_FRACTION, note)


def memory_verdicts(rows: Sequence[Mapping[str, Any]]) -> Iterator[Verdict]:
    """Say which sampling methods keep to the memory that is asked for at 4096 x 4096 pixels.

    Args:
        rows: `method`, `pixels` and `peak_gib` (None: memory ran out) of each run on a GPU.
    """
    for row in rows:
        if row["pixels"] == 4096:
            yield Verdict(f"{row['method']} at 4096, peak GiB", row["peak_gib"], SAMPLING_GIB, at_most=True)


def exit_code(verdicts: Sequence[Verdict]) -> int:
    """0 if every goal is met, else 1."""
    return int(not all(verdict.is_met for verdict in verdicts))
