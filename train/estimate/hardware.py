"""What estimates assume about machines, and what one device holds during a training."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from data.shards.shard_set import ShardSet
from seecoder.base_model.known_bases import BaseSizes
from seecoder.checks import check, choice, number, optional
from train.estimate.costs import Costs, count_costs
from train.optimizers import state_bytes
from train.run.cpu_attention import runs_on_cpu
from train.run.zero import BUCKET
from train.settings import OptimizerSettings, RunSettings
from train.sources.caches import find_caches

GIB = 2**30
_FEWEST_FIRST: tuple[tuple[str, ...], ...] = ((), ("encoder",), ("encoder", "unet"))
_CONTEXT_GIB = 1.0  # what CUDA, cuDNN and NCCL take before the first tensor
_FRAGMENTATION = 1.1  # the caching allocator's loss, on activations
RESERVE = 0.05  # fraction of a device that stays free: CUDA's context, NCCL and fragmentation are only estimated


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


@dataclass(frozen=True)
class CountedRun:
    """A run whose costs were counted.

    Attributes:
        run: Its settings.
        options: Arguments of `train.stages.seecoder.SeeCoderStage`.
        source: Arguments of the data source.
        shards: The source's shards, if they are there.
        hardware: What estimates assume.
        costs: What one picture costs.
        state_bytes: What the optimizer keeps of each trained parameter, measured; 8 are AdamW's two moments.
    """

    run: RunSettings
    options: Mapping[str, Any]
    source: Mapping[str, Any]
    shards: ShardSet | None
    hardware: Hardware
    costs: Costs
    state_bytes: float = 8.0

    @property
    def checkpoint_bytes(self) -> int:
        """Weights, the optimizer's state, and the average."""
        return round(self.costs.trained * (4 + self.state_bytes + 4 * (self.options.get("ema") is not None)))


def count_run(
    run: RunSettings,
    options: Mapping[str, Any],
    source: Mapping[str, Any],
    sizes: BaseSizes,
    shards: ShardSet | None,
    hardware: Hardware,
    cached: Mapping[str, float] | None = None,
) -> CountedRun:
    """Count a run of a base; where it says "auto", with as few parts that recompute as leave `RESERVE` free.

    Recomputing costs time, but a run that dies of its memory after a day has lost more. Where even recomputing
    everything is not enough, everything recomputes. Arguments are those of `CountedRun`, and of `Costs` what is
    cached where that is not to be what the shards hold.
    """
    cached = cached or {model: one.used for model, one in find_caches(options, source, shards).items()}
    sides = [source.get("image_size", 512), *(source.get("buckets") or {}).get("resolutions", ())]
    size, mixed = max(sides), run.precision != "32-true"
    given = options.get("gradient_checkpointing") or ()
    optimizer = OptimizerSettings(**options.get("optimizer") or {})
    of_matrices, of_others = (state_bytes(optimizer, name) for name in ("weight", "other"))
    for recomputing in _FEWEST_FIRST if given == "auto" else (tuple(given),):
        chosen = {**options, "gradient_checkpointing": recomputing}
        costs = count_costs(chosen, sizes, size, mixed=mixed, cached=cached)
        kept = of_others + (of_matrices - of_others) * costs.matrices / costs.trained
        counted = CountedRun(run, chosen, source, shards, hardware, costs, kept)
        if sum(device_bytes(counted).values()) <= (1 - RESERVE) * hardware.memory(run):
            break
    return counted  # pyright: ignore[reportPossiblyUnboundVariable] - there is at least one


def device_bytes(counted: CountedRun) -> dict[str, float]:
    """Estimate what one device holds, in bytes by part.

    Returns:
        Those of the frozen parts, of what is trained with its optimizer, of the "context" that the system takes before
        the first tensor, and of a micro-batch's "pictures".
    """
    run, costs = counted.run, counted.costs
    return {
        "frozen": costs.frozen_bytes,
        "trained": trained_bytes(counted),
        "context": 0 if run.accelerator == "cpu" else _CONTEXT_GIB * GIB,
        "pictures": counted.source["batch_size"] * costs.activation_bytes * _FRAGMENTATION,
    }


def trained_bytes(counted: CountedRun) -> float:
    """What one process holds of trained parameters, with their running average if there is one.

    Under DDP weights, gradients and their copy for the exchange, and the optimizer's state. Under ZeRO the moments, a
    second copy of the weights and, in stage 2, the gradients are shared out over processes; the step makes its share of
    the gradients contiguous, and exchanges through a bucket.
    """
    run, trained, has_average = counted.run, counted.costs.trained, counted.options.get("ema") is not None
    processes = run.devices * run.num_nodes
    if run.zero_stage:
        gradients = 1 if run.zero_stage == 1 else 1 / processes
        whole = 4 * trained * (1 + gradients + 4 / processes) + 4 * BUCKET
    else:
        whole = trained * (4 * (2 + (processes > 1)) + counted.state_bytes)
    return whole + trained * (4 * has_average + 2 * (run.precision != "32-true"))  # autocast's 16-bit casts
