"""What estimates of a run's speed and memory assume about the machine, and about many of them."""

import math
import re
from dataclasses import dataclass, fields

import torch

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
    "h100-pcie": _Device(756, 378, 79),
    "h100-nvl": _Device(835, 418, 93),
    "h200": _Device(989, 494, 139),
    "l40s": _Device(362, 183, 44),
    "rtx4090": _Device(165, 82, 23.5),
    "cpu": _Device(0.1, 0.1, math.inf),  # an assumption, not a published figure: about two cores
}


_OTHERS = ("mig", "laptop", "4090d")  # slices and namesakes of a device, with a peak of their own


def known_device(name: str) -> str | None:
    """Key of `DEVICES` for a name that CUDA gives, such as "NVIDIA H100 80GB HBM3"; None where none is sure."""
    letters = re.sub(r"[^a-z0-9]", "", name.lower())
    if any(other in letters for other in _OTHERS):
        return None
    found = [key for key in DEVICES if all(part in letters for part in key.split("-"))]
    return max(found, key=len, default=None)


def runs_on_cpu(run: RunSettings) -> bool:
    """Whether Lightning will find nothing but the CPU."""
    if run.accelerator != "auto":
        return run.accelerator == "cpu"
    return not torch.cuda.is_available() and not torch.backends.mps.is_available()


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
        for name in ("tflops", "memory_gib"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"`hardware.{name}`={value} must be above 0, and finite.")
        if not 0 < self.efficiency <= 1:
            raise ValueError(f"`hardware.efficiency`={self.efficiency} must be in (0, 1].")

    @classmethod
    def here(cls, run: RunSettings) -> "Hardware":
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

    def memory(self, run: RunSettings) -> float:
        """Memory of a device in bytes."""
        return GIB * (self.memory_gib or DEVICES[self.name(run)].memory)


@dataclass(frozen=True)
class Cluster:
    """What estimates assume about many machines; not one of these numbers is measured by us.

    Attributes:
        gpus_per_node: GPUs of a machine.
        node_gb: GB/s that a GPU exchanges within its machine; NCCL's own model has at most 235 for A100s (tuning.cc).
        network_gb: GB/s of the network for each GPU: one port of 200 Gbit/s each.
        node_latency_us: Microseconds of one step of a ring within a machine; NCCL's model has 3.4.
        network_latency_us: The same between machines; NCCL's model has 9.6.
        fixed_seconds: What a micro-batch costs before its first picture: launches, layers too small to fill a GPU.
            NVIDIA's ControlNet on an A100 trains 21.52 pictures a second in micro-batches of 8 and 27.20 in those of 32
            (NeMo's performance page): 0.104 s, and 0.0335 s a picture.
        cores_per_gpu: CPU cores that may read for one GPU.
        decodes_per_core: JPEG of 512 x 512 pixels that a core reads in a second.
        opening_ms: Milliseconds to open a shard and read its index of 1,000 samples.
        picture_kb: Kilobytes of a picture in the shards.
        storage_gb: GB/s that all machines together get from the storage.
        samples_per_shard: Samples of a shard.
        shards: Shards; None: those that are there, else as many as the plan's pictures fill, each seen once.
        checkpoint_gb: GB/s at which one process writes a checkpoint, its checksum included.
        hours_between_failures: Hours of one GPU for each interruption; Llama 3 had 419 in 54 days on 16,384 (arXiv
            2407.21783, section 3.3.4).
        restart_minutes: From an interruption to the first new step.
    """

    gpus_per_node: int = 8
    node_gb: float = 235.0
    network_gb: float = 25.0
    node_latency_us: float = 3.4
    network_latency_us: float = 9.6
    fixed_seconds: float = 0.1
    cores_per_gpu: float = 16.0
    decodes_per_core: float = 250.0
    opening_ms: float = 3.0
    picture_kb: float = 100.0
    storage_gb: float = 10.0
    samples_per_shard: int = 1000
    shards: int | None = None
    checkpoint_gb: float = 0.5
    hours_between_failures: float = 50_000.0
    restart_minutes: float = 10.0

    def __post_init__(self):
        free = ("node_latency_us", "network_latency_us", "fixed_seconds", "opening_ms", "restart_minutes")
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not (math.isfinite(value) and (value > 0 or (value == 0 and field.name in free))):
                least = "at least 0" if field.name in free else "above 0"
                raise ValueError(f"`cluster.{field.name}`={value} must be {least}, and finite.")
