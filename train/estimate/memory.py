"""What one device holds during a training, and which parts recompute their activations so that it fits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data.shards.shard_set import ShardSet
from seecoder.base_model.known_bases import BaseSizes
from train.estimate.costs import Costs, count_costs
from train.estimate.hardware import GIB, Hardware
from train.optimizers import state_bytes
from train.run.zero import BUCKET
from train.settings import OptimizerSettings, RunSettings
from train.sources.caches import find_caches

_FEWEST_FIRST: tuple[tuple[str, ...], ...] = ((), ("encoder",), ("encoder", "unet"))
_CONTEXT_GIB = 1.0  # what CUDA, cuDNN and NCCL take before the first tensor
_FRAGMENTATION = 1.1  # the caching allocator's loss, on activations
RESERVE = 0.05  # fraction of a device that stays free: CUDA's context, NCCL and fragmentation are only estimated


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
        state_bytes: What the optimizer keeps of each trained parameter, measured.
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
        "trained": trained_bytes(costs.trained, run, counted.options.get("ema") is not None, counted.state_bytes),
        "context": 0 if run.accelerator == "cpu" else _CONTEXT_GIB * GIB,
        "pictures": counted.source["batch_size"] * costs.activation_bytes * _FRAGMENTATION,
    }


def trained_bytes(trained: int, run: RunSettings, has_average: bool, state: float = 8.0) -> float:
    """What one process holds of trained parameters.

    Under DDP weights, gradients and their copy for the exchange, and the optimizer's state. Under ZeRO the moments, a
    second copy of the weights and, in stage 2, the gradients are shared out over processes; the step makes its share of
    the gradients contiguous, and exchanges through a bucket.

    Args:
        trained: Their number.
        run: Processes, strategy, precision.
        has_average: Whether there is a running average.
        state: Bytes that the optimizer keeps of each; 8 are AdamW's two moments.
    """
    processes = run.devices * run.num_nodes
    if run.zero_stage:
        gradients = 1 if run.zero_stage == 1 else 1 / processes
        whole = 4 * trained * (1 + gradients + 4 / processes) + 4 * BUCKET
    else:
        whole = trained * (4 * (2 + (processes > 1)) + state)
    return whole + trained * (4 * has_average + 2 * (run.precision != "32-true"))  # autocast's 16-bit casts
