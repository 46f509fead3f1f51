"""What estimates assume about machines: a table of devices, and the few numbers that a user may change."""

import math
from dataclasses import dataclass

import torch

from seecoder.checks import check, choice, number, optional
from train.run.cpu_attention import runs_on_cpu
from train.settings import RunSettings

GIB = 2**30


@dataclass(frozen=True)
class _Device:
    """Published peak of dense matrix products in TFLOP/s, and memory that a program can have in GiB."""

    bfloat16: float
    float32: float
    memory: float


# A table of our own, because that of Lightning 2.6 (`lightning.fabric.utilities.throughput`) knows no memory, counts an
# H200 and an H100 NVL with sparsity, which doubles them, and an RTX 4090 at half its peak.
DEVICES = {
    "a100": _Device(312, 156, 79),
    "a100-40": _Device(312, 156, 39),
    "h100": _Device(989, 494, 79),
    "h100-pcie": _Device(756, 378, 79),
    "h100-nvl": _Device(835, 418, 93),
    "h200": _Device(989, 494, 139),
    "l40s": _Device(362, 183, 44),
    "rtx4090": _Device(165, 82, 23.5),
    "cpu": _Device(0.1, 0.1, math.inf),  # an assumption, not a published figure: about two cores
}


@dataclass(frozen=True)
class Hardware:
    """What the estimates assume; `train.estimate.laws` says where the numbers come from.

    Attributes:
        device: A name of `DEVICES`; None is "cpu" for run.accelerator=cpu, else "a100".
        tflops: Peak in TFLOP/s in place of the table's.
        memory_gib: Memory of a device in place of the table's.
        efficiency: Fraction of the peak that a training reaches.
        fixed_seconds: What a micro-batch costs before its first picture.
        network_gb: GB/s of the network between machines, for each GPU.
    """

    device: str | None = None
    tflops: float | None = None
    memory_gib: float | None = None
    efficiency: float = 0.28
    fixed_seconds: float = 0.1
    network_gb: float = 25.0

    def __post_init__(self) -> None:
        positive = number(0.0, above_minimum=True)
        check(self, device=optional(choice(*DEVICES)), tflops=optional(positive), memory_gib=optional(positive))
        check(self, efficiency=number(0.0, 1.0, above_minimum=True), fixed_seconds=number(0.0), network_gb=positive)

    @classmethod
    def of_this_machine(cls, run: RunSettings) -> "Hardware":
        """This machine's: the memory of its first CUDA device, or a CPU's, which counts as endless."""
        if runs_on_cpu(run) or not torch.cuda.is_available():
            return cls(device="cpu")
        return cls(memory_gib=torch.cuda.get_device_properties(0).total_memory / GIB)

    def name(self, run: RunSettings) -> str:
        """The device's name for a run."""
        return self.device or ("cpu" if run.accelerator == "cpu" else "a100")

    def peak(self, run: RunSettings) -> float:
        """Peak in FLOP/s at the run's precision."""
        device = DEVICES[self.name(run)]
        return 1e12 * (self.tflops or (device.float32 if run.precision == "32-true" else device.bfloat16))

    def speed(self, run: RunSettings) -> float:
        """FLOP/s that a training is assumed to reach."""
        return self.peak(run) * self.efficiency

    def memory(self, run: RunSettings) -> float:
        """Memory of a device in bytes."""
        return GIB * (self.memory_gib or DEVICES[self.name(run)].memory)
