"""What one device holds during a training, and which parts recompute their activations so that it fits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from train.estimate.costs import Costs
from train.estimate.hardware import GIB
from train.run.zero import BUCKET
from train.settings import RunSettings

AUTO = "auto"  # in place of parts that recompute: as few as the memory allows
_FEWEST_FIRST: tuple[tuple[str, ...], ...] = ((), ("encoder",), ("encoder", "unet"))
_CONTEXT_GIB = 1.0  # what CUDA, cuDNN and NCCL take before the first tensor
_FRAGMENTATION = 1.1  # the caching allocator's loss, on activations
RESERVE = 0.05  # share of a device that stays free: fragmentation, NCCL's buffers and CUDA's context are only estimated


@dataclass(frozen=True)
class DeviceMemory:
    """Estimated bytes of one device.

    Attributes:
        frozen: UNet, backbone, autoencoder.
        trained: Trained weights with their gradients, AdamW's state, the average.
        context: What the system takes before the first tensor.
        picture: Activations of one picture, fragmentation included.
        pictures: Of a micro-batch.
    """

    frozen: float
    trained: float
    context: float
    picture: float
    pictures: int

    @property
    def total(self) -> float:
        """All of it."""
        return self.frozen + self.trained + self.context + self.pictures * self.picture

    def leaves_reserve(self, limit: float) -> bool:
        """Whether `RESERVE` of a device's memory stays free."""
        return self.total <= (1 - RESERVE) * limit

    def most_pictures(self, limit: float) -> int:
        """Pictures of a micro-batch that would fit."""
        return int((limit - self.frozen - self.trained - self.context) / self.picture)


def device_memory(costs: Costs, run: RunSettings, options: Mapping[str, Any], batch_size: int) -> DeviceMemory:
    """Estimate what one device holds.

    Args:
        costs: Counted for one picture.
        run: Processes, strategy, precision.
        options: Arguments of `train.stages.seecoder.SeeCoderStage`.
        batch_size: Pictures of a micro-batch.
    """
    from seecoder.base_model.loading import DTYPES

    frozen = DTYPES[options.get("frozen_dtype", "float32")].itemsize * (costs.frozen["backbone"] + costs.frozen["unet"])
    frozen += DTYPES[options.get("vae_dtype", "float32")].itemsize * costs.frozen["vae"] + 4 * costs.frozen["encoder"]
    trained = trained_bytes(costs.trained, run, options.get("ema") is not None)
    context = 0 if run.accelerator == "cpu" else _CONTEXT_GIB * GIB
    return DeviceMemory(frozen, trained, context, costs.activation_bytes * _FRAGMENTATION, batch_size)


def trained_bytes(trained: int, run: RunSettings, has_average: bool) -> float:
    """What one process holds of trained parameters.

    Under DDP weights, gradients and their copy for the exchange, AdamW's moments. Under ZeRO the moments, a second copy
    of the weights and, in stage 2, the gradients are shared out over processes; the step makes its share of the
    gradients contiguous, and exchanges through a bucket.

    Args:
        trained: Their number.
        run: Processes, strategy, precision.
        has_average: Whether there is a running average.
    """
    processes = run.devices * run.num_nodes
    if run.zero_stage:
        gradients = 1 if run.zero_stage == 1 else 1 / processes
        whole = 4 * trained * (1 + gradients + 4 / processes) + 4 * BUCKET
    else:
        whole = 4 * trained * (4 + (processes > 1))
    return whole + trained * (4 * has_average + 2 * (run.precision != "32-true"))  # autocast's 16-bit casts


def fewest_checkpointed(memory: Callable[[tuple[str, ...]], DeviceMemory], limit: float) -> tuple[str, ...]:
    """Parts that have to recompute their activations, which costs time, so that a device's memory is enough.

    Enough leaves `RESERVE` free: a run that dies of its memory after a day has lost more than recomputing costs.

    Args:
        memory: What a device holds if these parts recompute.
        limit: Its memory in bytes.

    Returns:
        As few as possible; all, if even that is not enough.
    """
    return next((parts for parts in _FEWEST_FIRST if memory(parts).leaves_reserve(limit)), _FEWEST_FIRST[-1])
