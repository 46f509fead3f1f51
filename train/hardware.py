"""What estimates of a run's speed and memory assume about the machine."""

import math
from dataclasses import dataclass

from train.settings import RunSettings

GIB = 2**30


@dataclass(frozen=True)
class _Device:
    """Published peak of dense matrix products in TFLOP/s, and memory that a program can have in GiB."""

    bfloat16: float
    float32: float
    memory: float


DEVICES = {
    "a100": _Device(312, 156, 79),
    "a100-40": _Device(312, 156, 39),
    "h100": _Device(989, 494, 79),
    "h200": _Device(989, 494, 139),
    "l40s": _Device(362, 183, 44),
    "rtx4090": _Device(165, 82, 23.5),
    "cpu": _Device(0.1, 0.1, math.inf),  # an assumption, not a published figure: about two cores
}


@dataclass(frozen=True)
class Hardware:
    """What the estimates assume.

    Attributes:
        device: A name of `DEVICES`; None is "cpu" for run.accelerator=cpu, else "a100".
        tflops: Peak in TFLOP/s in place of the table's.
        memory_gib: Memory of a device in place of the table's.
        efficiency: Share of the peak that a training reaches; 0.28 is what published trainings of this kind reached on
            A100s.
    """

    device: str | None = None
    tflops: float | None = None
    memory_gib: float | None = None
    efficiency: float = 0.28

    def __post_init__(self):
        if self.device is not None and self.device not in DEVICES:
            raise ValueError(f"`hardware.device`={self.device!r} is not known; accepted: {', '.join(DEVICES)}.")
        if not 0 < self.efficiency <= 1:
            raise ValueError(f"`hardware.efficiency`={self.efficiency} must be in (0, 1].")

    def name(self, run: RunSettings) -> str:
        """The device's name for a run."""
        return self.device or ("cpu" if run.accelerator == "cpu" else "a100")

    def peak(self, run: RunSettings) -> float:
        """Peak in FLOP/s at the run's precision."""
        device = DEVICES[self.name(run)]
        return 1e12 * (self.tflops or (device.float32 if run.precision == "32-true" else device.bfloat16))

    def memory(self, run: RunSettings) -> float:
        """Memory of a device in bytes."""
        return GIB * (self.memory_gib or DEVICES[self.name(run)].memory)
