"""The order of data as a pure function of (seed, epoch, sample): no iterator state, no rank, no worker in it.

One endless sequence of samples is laid end to end from epochs; each epoch holds every sample of the manifest exactly
once, in an order of its own. Micro-batch, rank and worker only say which *positions* of that sequence somebody reads,
so what a global batch holds does not depend on how many processes share it, and a single number is enough to continue
a run.

Within an epoch the shards are permuted, cut into blocks of `window` shards, and the samples of a block are permuted
together. A reader therefore has at most `window` shards open at a time, and mixes samples over all of them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seecoder.checks import check, require, some_of, whole

_CACHED_EPOCHS = 2  # a batch may straddle two
_CACHED_ORDERS = 6  # of their shards, and of four blocks
_NEAR_ATTEMPTS = 8  # substitutes from the same block, whose shards are open, before looking anywhere


def derive_seed(*parts: int | str) -> int:
    """Mix numbers and names into one seed in [0, 2^63); the same on every machine, Python and library version."""
    plain = tuple(part if isinstance(part, str) else int(part) for part in parts)  # NumPy's integers print otherwise
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@lru_cache(_CACHED_ORDERS)
def permutation(count: int, *parts: int | str) -> NDArray[np.int64]:
    """Permute `range(count)` as a pure function of `parts`.

    Sorting raw Philox output is used instead of `Generator.permutation`, whose result NumPy may change between versions
    (NEP 19 freezes the bit generators only).
    """
    keys = np.random.Philox(key=derive_seed(*parts)).random_raw(count)
    return np.argsort(keys, kind="stable")


class Place(NamedTuple):
    """Where a position of the sequence points.

    Attributes:
        epoch: Number of the epoch, from 0.
        shard: Number of the shard in the manifest's order.
        number: Number of the sample in its shard.
        sample_id: Number of the sample in the manifest's order: stable over runs, epochs and world sizes.
    """

    epoch: int
    shard: int
    number: int
    sample_id: int


@dataclass(frozen=True)
class _Epoch:
    shards: NDArray[np.int64]  # permuted shard numbers
    starts: NDArray[np.int64]  # (shards + 1,) where each begins in the epoch


class Plan:
    """Order of the samples of a set of shards.

    Args:
        samples: Number of samples of each shard, in the manifest's order.
        seed: Seed of the order.
        window: Shards whose samples are mixed with each other.
        shuffle: False keeps the manifest's order in every epoch (evaluation).

    Raises:
        ValueError: There are no samples, a count is negative, or `window` is below 1.
    """

    def __init__(self, samples: Sequence[int], *, seed: int = 0, window: int = 8, shuffle: bool = True) -> None:
        self.seed, self.window, self.shuffle = seed, window, shuffle
        check(self, window=whole(1))
        require("samples", list(samples), some_of(whole(0), "a list of counts from 0 up"))
        self.counts = np.asarray(samples, dtype=np.int64)
        self.samples = int(self.counts.sum())
        if self.samples == 0:
            raise ValueError(f"The {len(samples)} shards hold no samples at all.")
        self.offsets = np.concatenate([[0], np.cumsum(self.counts)])  # sample_id of each shard's first sample
        self._epochs: dict[int, _Epoch] = {}

    def __len__(self) -> int:
        """Return the samples of one epoch."""
        return self.samples

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_epochs": {}}  # workers rebuild these in milliseconds

    def place(self, position: int) -> Place:
        """Look up a position of the endless sequence.

        Args:
            position: Non-negative; epoch `e` begins at `e * len(plan)`.
        """
        epoch, local = divmod(position, self.samples)
        order = self._epoch(epoch)
        slot = int(np.searchsorted(order.starts, local, side="right")) - 1
        if self.shuffle:
            block = slot // self.window
            first, stop = self._borders(order, block)
            local = first + int(permutation(stop - first, self.seed, "samples", epoch, block)[local - first])
            slot = int(np.searchsorted(order.starts, local, side="right")) - 1
        shard, number = int(order.shards[slot]), local - int(order.starts[slot])
        return Place(epoch, shard, number, int(self.offsets[shard]) + number)

    def substitute(self, position: int, attempt: int) -> Place:
        """Choose who takes the place of an unreadable sample, as a pure function of (seed, position, attempt).

        Batches keep their size that way on every rank without the ranks having to agree. The first attempts stay in
        the block, whose shards are open anyway; later ones look in the whole epoch, because whole shards may be gone.

        Args:
            position: Position of the unreadable sample.
            attempt: 0 for the first substitute, and so on.
        """
        epoch, local = divmod(position, self.samples)
        first, stop = 0, self.samples
        if attempt < _NEAR_ATTEMPTS:
            order = self._epoch(epoch)
            first, stop = self._borders(order, (int(np.searchsorted(order.starts, local, "right")) - 1) // self.window)
        draw = derive_seed(self.seed, "substitute", position, attempt)
        return self.place(epoch * self.samples + first + draw % (stop - first))

    def shards_of_block(self, position: int, ahead: int = 0) -> list[int]:
        """Name the shards that are read together around a position, or `ahead` blocks later (for fetching in time)."""
        epoch, local = divmod(position, self.samples)
        order = self._epoch(epoch)
        block = (int(np.searchsorted(order.starts, local, side="right")) - 1) // self.window + ahead
        blocks = -(-len(self.counts) // self.window)
        if block >= blocks:
            order, block = self._epoch(epoch + block // blocks), block % blocks
        return order.shards[block * self.window : (block + 1) * self.window].tolist()

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            shards = np.arange(len(self.counts))
            if self.shuffle:
                shards = permutation(len(self.counts), self.seed, "shards", epoch)
            starts = np.concatenate([[0], np.cumsum(self.counts[shards])])
            while len(self._epochs) >= _CACHED_EPOCHS:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = _Epoch(shards, starts)
        return self._epochs[epoch]

    def _borders(self, order: _Epoch, block: int) -> tuple[int, int]:
        """Where a block begins and ends in its epoch."""
        stop = min((block + 1) * self.window, len(self.counts))
        return int(order.starts[block * self.window]), int(order.starts[stop])
