"""The loader that a training reads: resumable, and the same for any number of ranks and workers."""

import threading
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from torch.utils.data import DataLoader, Sampler

from data.shards.plan import Plan
from data.shards.reading.shard_batches import SKIPS, ShardBatches
from data.shards.reading.signals import obey_parent_alone, signals_held_back
from data.shards.reading.skips import SkipLog, check_passed
from data.shards.reading.square_image import Transform
from data.shards.remote.fetcher import Fetcher
from data.shards.shard_set import ShardSet
from seecoder.checks import Rule, optional, require, whole


class _Starts(Sampler[int]):
    """Positions at which one rank's batches of the current pass begin; `DataLoader` asks once for each pass."""

    def __init__(self) -> None:
        self.positions = range(0)

    def __iter__(self) -> Iterator[int]:
        return iter(self.positions)


class ShardLoader:
    """Reads shards in passes of a fixed number of batches, from any step on and with any number of processes.

    Micro-batch `m` of the sequence holds positions `[m * world_size * batch_size, (m + 1) * world_size *
    batch_size)`, of which rank `r` reads the `r`-th part. An optimizer step over `accumulate` micro-batches thus sees
    the same samples for any split of a global batch into `world_size * batch_size * accumulate`.

    A training (`endless=True`) reads on where the last pass ended: no sample is dropped and none is doubled, a batch
    may straddle two epochs. An evaluation (`endless=False`) begins each pass at the first sample and covers all, with
    the last batches filled up and marked not `valid`.

    Args:
        shards: The shards.
        plan: The order of their samples.
        transform: Makes an example from a sample.
        batch_size: Samples that one rank takes at a time.
        rank: This process, from 0. Passed by the caller, never looked up: a worker started by spawn could not know it.
        world_size: Number of processes that read together.
        batches: Length of a pass in batches of this rank; None: as many as all samples of an epoch are in.
        num_workers: Worker processes of this rank; 0 reads in this process.
        endless: Training (True) or evaluation (False), see above.
        ceiling: Share of unreadable samples above which reading stops.
        report: File to which unreadable shards and samples are appended, each once.
        fetcher: Brings https shards onto this machine; needed if there are any.
        pin_memory: Put tensors into page-locked memory, for asynchronous transfer to a GPU.

    Raises:
        ValueError: There are fewer shards than readers, too much is lost already, or an argument is out of range.
    """

    def __init__(
        self,
        shards: ShardSet,
        plan: Plan,
        transform: Transform,
        batch_size: int,
        *,
        rank: int,
        world_size: int,
        batches: int | None = None,
        num_workers: int = 0,
        endless: bool = True,
        ceiling: float = 0.01,
        report: str | Path | None = None,
        fetcher: Fetcher | None = None,
        pin_memory: bool = False,
    ) -> None:
        require("batch_size", batch_size, whole(1))
        require("world_size", world_size, whole(1))
        require("rank", rank, whole(0, world_size - 1))
        require("batches", batches, optional(whole(1)))
        require("num_workers", num_workers, whole(0))
        self.skips = SkipLog(ceiling, report)
        check_passed(shards.passed, sum(shards.counts), ceiling, self.skips.report)
        check_readers(len(shards.shards), world_size, num_workers)
        self.plan, self.batch_size, self.rank = plan, batch_size, rank
        self.world_size, self.endless = world_size, endless
        self.batches = -(-len(plan) // (batch_size * world_size)) if batches is None else batches
        self._position = 0  # of the sequence, all ranks together; where the next batch begins
        self._starts = _Starts()
        self.dataset = ShardBatches(shards, self.plan, transform, batch_size, fetcher, endless)
        self._prefetcher = Prefetcher(self.plan, shards, fetcher) if fetcher is not None else None
        # Batches are asked for by their positions, in order, from workers that live as long as the loader.
        self._loader: DataLoader[dict[str, Any]] = DataLoader(
            self.dataset,
            batch_size=None,
            sampler=self._starts,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            worker_init_fn=obey_parent_alone,
        )

    def __len__(self) -> int:
        """Return the batches of a whole pass; finite, because Lightning prefetches one batch too many from others."""
        return self.batches

    def seek(self, samples_consumed: int) -> None:
        """Begin the next pass where this many samples of all ranks were consumed: `step * global_batch_size`.

        Raises:
            ValueError: The number is negative, or batches from there on would hold samples of two buckets.
        """
        require("samples_consumed", samples_consumed, whole(0))
        whole_batches = Rule(lambda used: used % self.batch_size == 0, f"a multiple of `batch_size`={self.batch_size}")
        require("samples_consumed", samples_consumed * (self.plan.group > 1), whole_batches)
        self._position = samples_consumed

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Read one pass; a pass that was left early counts as ended where it was left."""
        # Being a generator, nothing of this happens before the first batch is asked for: Lightning makes iterators that
        # it does not use.
        stride = self.batch_size * self.world_size
        if not self.endless:
            self._position = 0
        first = self._position + self.rank * self.batch_size
        self._starts.positions = range(first, first + self.batches * stride, stride)
        with signals_held_back() if self._loader.num_workers else nullcontext():
            batches = iter(self._loader)
        for batch in batches:
            self._position += stride
            self.skips.add(self.batch_size, batch.pop(SKIPS))
            if self._prefetcher is not None:
                self._prefetcher.look_ahead(self._position)
            yield batch

    def close(self) -> None:
        """Stop the workers."""
        iterator, self._loader._iterator = self._loader._iterator, None
        with suppress(AttributeError):  # a single-process iterator has nothing to stop
            iterator._shutdown_workers()  # type: ignore[union-attr]
        self.dataset.reader.close()


def check_readers(shards: int, world_size: int, num_workers: int) -> None:
    """Refuse more readers than shards."""
    readers = world_size * max(1, num_workers)
    if shards < readers:
        most = shards // world_size
        advice = f"use at most {most} workers a process" if most else f"use at most {shards} processes"
        raise ValueError(
            f"{shards} shards are fewer than {readers} readers ({world_size} processes x {max(1, num_workers)} workers)"
            f": {advice}, or make more and smaller shards (`python -m data.build ... --samples-per-shard N`)."
        )


class Prefetcher:
    """A thread of the main process that brings https shards onto the machine one block ahead.

    Args:
        plan: Order of the shards.
        shards: The shards.
        fetcher: Brings them.
    """

    def __init__(self, plan: Plan, shards: ShardSet, fetcher: Fetcher) -> None:
        self._plan, self._shards, self._fetcher = plan, shards, fetcher
        self._wanted: SimpleQueue[list[int]] = SimpleQueue()
        self._last: list[int] = []
        self._thread: threading.Thread | None = None

    def look_ahead(self, position: int) -> None:
        """Ask for the block after the one at `position`; does nothing if it was asked for already."""
        ahead = self._plan.shards_of_block(position, ahead=1)
        if ahead == self._last:
            return
        self._last = ahead
        if self._thread is None:  # not before the first batch, when the loader's workers have been started
            self._thread = threading.Thread(target=self._work, name="shard-prefetch", daemon=True)
            self._thread.start()
        self._wanted.put(ahead)

    def _work(self) -> None:
        while True:
            for number in self._wanted.get():
                located = self._shards.shards[number]
                if isinstance(located.location, str):
                    self._fetcher.fetch(located.location, located.shard)
