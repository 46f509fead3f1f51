"""The order of data as a pure function of (seed, epoch, sample): no iterator state, no rank, no worker in it.

One endless sequence of samples is laid end to end from epochs; each epoch holds every sample of the manifest exactly
once, in an order of its own. Micro-batch, rank and worker only say which *positions* of that sequence somebody reads,
so what a global batch holds does not depend on how many processes share it, and a single number is enough to continue
a run.

Within an epoch the shards are permuted, cut into blocks of `window` shards, and the samples of a block are permuted
together. A reader therefore has at most `window` shards open at a time, and mixes samples over all of them.

With buckets a batch holds samples of one. Those of a bucket follow each other as in the order above, and a group of
consecutive ones belongs together. The groups that a block completes come in an order of their own; what is left over
waits for the next block, and at the end of an epoch for the next epoch. So every (epoch, sample) comes exactly once,
none is dropped, repeated or padded, and fewer than a group of each bucket wait at any time.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seecoder.checks import check, require, some_of, whole

_CACHED = 16  # epochs and blocks whose orders stay in memory; a batch may straddle two, and some samples waited
_NEAR_ATTEMPTS = 8  # substitutes from the same block, whose shards are open, before looking anywhere


def derive_seed(*parts: int | str) -> int:
    """Mix numbers and names into one seed in [0, 2^63); the same on every machine, Python and library version."""
    plain = tuple(part if isinstance(part, str) else int(part) for part in parts)  # NumPy's integers print otherwise
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


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


class Plan:
    """Order of the samples of a set of shards.

    Args:
        samples: Number of samples of each shard, in the manifest's order.
        seed: Seed of the order.
        window: Shards whose samples are mixed with each other.
        shuffle: False keeps the manifest's order in every epoch (evaluation).
        buckets: (samples of all shards,) the bucket of each, from 0; None: all are alike.
        shapes: (buckets, 2) height and width of each bucket; None: nobody looks whether samples have them.
        group: Consecutive samples of one bucket: position p belongs to group p // `group`.

    Raises:
        ValueError: There are no samples, a count is negative, or `window` or `group` is below 1.
    """

    def __init__(
        self,
        samples: Sequence[int],
        *,
        seed: int = 0,
        window: int = 8,
        shuffle: bool = True,
        buckets: NDArray[np.int64] | None = None,
        shapes: NDArray[np.int64] | None = None,
        group: int = 1,
    ) -> None:
        self.seed, self.window, self.shuffle = seed, window, shuffle
        self.buckets, self.shapes, self.group = buckets, shapes, group
        check(self, window=whole(1), group=whole(1))
        require("samples", list(samples), some_of(whole(0), "a list of counts from 0 up"))
        self.counts = np.asarray(samples, dtype=np.int64)
        self.samples = int(self.counts.sum())
        if self.samples == 0:
            raise ValueError(f"The {len(samples)} shards hold no samples at all.")
        self.offsets = np.concatenate([[0], np.cumsum(self.counts)])  # sample_id of each shard's first sample
        self.of_shards = self.counts[:, None]  # samples of each bucket
        if buckets is not None:
            kinds, shards = int(buckets.max()) + 1, np.repeat(np.arange(len(self.counts)), self.counts)
            cells = np.bincount(shards * kinds + buckets, minlength=len(self.counts) * kinds)
            self.of_shards = cells.reshape(-1, kinds)
        self.totals = self.of_shards.sum(0)

    def __len__(self) -> int:
        """Return the samples of one epoch."""
        return self.samples

    def place(self, position: int) -> Place:
        """Look up a position of the endless sequence.

        Args:
            position: Non-negative; epoch `e` begins at `e * len(plan)`, later by what waits for its group to be full.
        """
        return self._place(*self._find(position))

    def substitute(self, position: int, attempt: int) -> Place:
        """Choose who takes the place of an unreadable sample, as a pure function of (seed, position, attempt).

        Batches keep their size that way on every rank without the ranks having to agree, and their bucket. The first
        attempts stay in the block, whose shards are open anyway; later ones look in the whole epoch, because whole
        shards may be gone.

        Args:
            position: Position of the unreadable sample.
            attempt: 0 for the first substitute, and so on.
        """
        bucket, number = self._find(position)
        before, block = self._locate(bucket, number)
        first, stop = before[[block, block + 1] if attempt < _NEAR_ATTEMPTS else [0, -1]].tolist()
        draw = derive_seed(self.seed, "substitute", position, attempt)
        return self._place(bucket, first + draw % (stop - first))

    def shards_of_block(self, position: int, ahead: int = 0) -> list[int]:
        """Name the shards that are read together around a position, or `ahead` blocks later (for fetching in time)."""
        epoch, local = divmod(position, self.samples)
        starts = _counts_before(self, epoch).sum(1) - epoch * self.samples
        block = int(np.searchsorted(starts, local, side="right")) - 1
        further, block = divmod(block + ahead, len(starts) - 1)
        return _shards(self, epoch + further)[block * self.window : (block + 1) * self.window].tolist()

    def _find(self, position: int) -> tuple[int, int]:
        """Bucket at a position, and the number of the sample in the bucket's own endless sequence."""
        if self.buckets is None:
            return 0, position
        group, within = divmod(position, self.group)
        epoch = group * self.group // self.samples  # or a later one: what waits is late
        while int((self.totals * (epoch + 1) // self.group).sum()) <= group:
            epoch += 1
        full = (_counts_before(self, epoch) // self.group).sum(1)
        block = int(np.searchsorted(full, group, side="right")) - 1
        bucket, number = _groups(self, epoch, block)[group - full[block]].tolist()
        return bucket, number * self.group + within

    def _locate(self, bucket: int, number: int) -> tuple[NDArray[np.int64], int]:
        """Where the blocks of a number's epoch begin in its bucket's endless sequence, and which block it is in."""
        before = _counts_before(self, number // int(self.totals[bucket]))[:, bucket]
        return before, int(np.searchsorted(before, number, side="right")) - 1

    def _place(self, bucket: int, number: int) -> Place:
        """Say where the sample with a number in its bucket's endless sequence lies."""
        epoch, (before, block) = number // int(self.totals[bucket]), self._locate(bucket, number)
        ids = _block_ids(self, epoch, block)
        ids = ids if self.buckets is None else ids[self.buckets[ids] == bucket]
        sample_id = int(ids[number - before[block]])
        shard = int(np.searchsorted(self.offsets, sample_id, side="right")) - 1
        return Place(epoch, shard, sample_id - int(self.offsets[shard]), sample_id)


@lru_cache(_CACHED)
def _shards(plan: Plan, epoch: int) -> NDArray[np.int64]:
    """Shards of an epoch in their order."""
    count = len(plan.counts)
    return permutation(count, plan.seed, "shards", epoch) if plan.shuffle else np.arange(count)


@lru_cache(_CACHED)
def _counts_before(plan: Plan, epoch: int) -> NDArray[np.int64]:
    """Samples of each bucket before each block of an epoch, and before the next epoch: (blocks + 1, buckets)."""
    shards = _shards(plan, epoch)
    counts = np.concatenate([np.zeros((1, len(plan.totals)), np.int64), plan.of_shards[shards].cumsum(0)])
    return epoch * plan.totals + counts[[*range(0, len(shards), plan.window), len(shards)]]


@lru_cache(_CACHED)
def _block_ids(plan: Plan, epoch: int, block: int) -> NDArray[np.int64]:
    """Numbers of a block's samples, in their order."""
    shards = _shards(plan, epoch)[block * plan.window : (block + 1) * plan.window]
    ids = np.concatenate([np.arange(*plan.offsets[shard : shard + 2].tolist()) for shard in shards])
    return ids[permutation(len(ids), plan.seed, "samples", epoch, block)] if plan.shuffle else ids


@lru_cache(_CACHED)
def _groups(plan: Plan, epoch: int, block: int) -> NDArray[np.int64]:
    """Groups that a block completes, in their order: (groups, 2), bucket and which group of the bucket it is."""
    before, after = _counts_before(plan, epoch)[block : block + 2] // plan.group
    buckets = np.repeat(np.arange(len(before)), after - before)
    numbers = np.concatenate([np.arange(*ends) for ends in zip(before, after, strict=True)])
    return np.stack([buckets, numbers], 1)[permutation(len(buckets), plan.seed, "groups", epoch, block)]
