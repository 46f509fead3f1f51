"""Fetch the next block's shards while this one is being read, so that a run does not wait at the border of blocks."""

import threading
from queue import SimpleQueue

from data.shards.https.fetcher import Fetcher
from data.shards.plan import Plan
from data.shards.shard_set import ShardSet


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
