"""Base of data sources: which samples an optimizer step sees, a pure function of (seed, step).

Step s takes the global samples s * G ... (s + 1) * G - 1, where G is the global batch, whatever the number of
processes. Global sample k belongs to epoch k // n, and is number k % n in that epoch's shuffle of n samples. Nothing is
saved, so nothing can be restored wrongly.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from data.shards.plan import derive_seed
from seecoder.checks import require, whole


@dataclass(frozen=True)
class Position:
    """Where this process stands.

    Attributes:
        first_step: Optimizer step at which the stream begins.
        last_step: Optimizer step before which it ends.
        accumulate: Micro-batches of a step.
        rank: This process.
        world_size: Processes.
    """

    first_step: int
    last_step: int
    accumulate: int = 1
    rank: int = 0
    world_size: int = 1

    @property
    def batches(self) -> int:
        """Micro-batches of this process that are left."""
        return max(0, self.last_step - self.first_step) * self.accumulate

    def samples_before(self, batch_size: int, batch: int = 0) -> int:
        """Global samples that come before micro-batch `batch` of all processes, counted from `first_step` on."""
        return (self.first_step * self.accumulate + batch) * self.world_size * batch_size


class Shuffle:
    """Order of `count` samples in every epoch."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed

    def keys(self, first: int, count: int) -> Tensor:
        """Epoch and sample number of the global samples first ... first + count - 1; (count, 2) int64."""
        positions = torch.arange(first, first + count)
        epochs = positions // self.count
        samples = torch.empty_like(positions)
        for epoch in epochs.unique().tolist():
            chosen = epochs == epoch
            samples[chosen] = _order(self.count, self.seed, epoch)[positions[chosen] % self.count]
        return torch.stack([epochs, samples], dim=1)


@lru_cache(2)  # a batch may straddle two epochs
def _order(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(seed, "order", epoch)))


@dataclass(frozen=True)
class StepStream:
    """Micro-batches of one process, from one optimizer step to another; a sized iterable, as Lightning wants.

    Attributes:
        keys: (first global sample, count) -> (count, 2) epochs and sample numbers.
        batch: (N, 2) keys -> a batch.
        batch_size: Samples of one micro-batch of one process.
        position: Where to begin and end.
    """

    keys: Callable[[int, int], Tensor]
    batch: Callable[[Tensor], Any]
    batch_size: int
    position: Position

    def __len__(self) -> int:
        return self.position.batches

    def __iter__(self) -> Iterator[Any]:
        own = self.position.rank * self.batch_size
        for batch in range(self.position.batches):
            first = self.position.samples_before(self.batch_size, batch) + own
            yield self.batch(self.keys(first, self.batch_size))


class StageData(LightningDataModule):
    """Base of data sources: micro-batches by optimizer step.

    Args:
        batch_size: Samples of one micro-batch of one process.
        seed: Seed of the order.
    """

    def __init__(self, batch_size: int, seed: int = 0) -> None:
        super().__init__()
        require("batch_size", batch_size, whole(1))
        self.batch_size = batch_size
        self.seed = seed

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch, except the keys: they seed generators on the CPU, and reading them back would stall a GPU."""
        keys = batch.pop("keys")
        return {**super().transfer_batch_to_device(batch, device, dataloader_idx), "keys": keys}

    def position(self) -> Position:
        """Where this process of the running training begins and ends."""
        trainer = self.trainer
        if trainer is None:
            raise RuntimeError("`position` is that of a running training; there is no trainer.")
        return Position(
            first_step=trainer.global_step,
            last_step=trainer.max_steps,
            accumulate=trainer.accumulate_grad_batches,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
