"""Which samples an optimizer step sees: a pure function of (seed, step), whatever the number of processes.

Step s takes the global samples s * G ... (s + 1) * G - 1, where G is the global batch. Global sample k belongs to
epoch k // n, and is number k % n in that epoch's shuffle of n samples. Nothing is saved, so nothing can be restored
wrongly.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.shards.plan import derive_seed


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


class Shuffle:
    """Order of `count` samples in every epoch."""

    def __init__(self, count: int, seed: int):
        self.count = count
        self.seed = seed
        self._orders: dict[int, Tensor] = {}

    def keys(self, first: int, count: int) -> Tensor:
        """Epoch and sample number of the global samples first ... first + count - 1; (count, 2) int64."""
        positions = torch.arange(first, first + count)
        epochs = positions // self.count
        samples = torch.empty_like(positions)
        for epoch in epochs.unique().tolist():
            chosen = epochs == epoch
            samples[chosen] = self._order(epoch)[positions[chosen] % self.count]
        return torch.stack([epochs, samples], dim=1)

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
            self._orders = {old: order for old, order in self._orders.items() if old == epoch - 1}
            self._orders[epoch] = torch.randperm(self.count, generator=generator)
        return self._orders[epoch]


class StepStream:
    """Micro-batches of one process, from one optimizer step to another; a sized iterable, as Lightning wants.

    Args:
        keys: (first global sample, count) -> (count, 2) epochs and sample numbers.
        batch: (N, 2) keys -> a batch.
        batch_size: Samples of one micro-batch of one process.
        position: Where to begin and end.
    """

    def __init__(
        self, keys: Callable[[int, int], Tensor], batch: Callable[[Tensor], Any], batch_size: int, position: Position
    ):
        self.keys = keys
        self.batch = batch
        self.batch_size = batch_size
        self.position = position

    def __len__(self) -> int:
        return max(0, self.position.last_step - self.position.first_step) * self.position.accumulate

    def __iter__(self) -> Iterator[Any]:
        where = self.position
        for micro_step in range(where.first_step * where.accumulate, where.last_step * where.accumulate):
            first = (micro_step * where.world_size + where.rank) * self.batch_size
            yield self.batch(self.keys(first, self.batch_size))
