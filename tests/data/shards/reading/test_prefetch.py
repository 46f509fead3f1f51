"""Shards of the next block are asked for once, ahead of their use."""

from pathlib import Path
from queue import SimpleQueue

from data.shards.https.fetcher import Fetcher
from data.shards.manifest import Shard
from data.shards.plan import Plan
from data.shards.reading.prefetch import Prefetcher
from data.shards.shard_set import LocatedShard, ShardSet


class Recorder(Fetcher):
    """Notes what it is asked for."""

    asked: SimpleQueue[str] = SimpleQueue()

    def fetch(self, url: str, shard: Shard) -> Path | None:
        assert url.endswith(shard.name)
        self.asked.put(shard.name)
        return None


def test_the_next_block_is_fetched_once(tmp_path: Path):
    shards = ShardSet(tuple(LocatedShard(Shard(f"{name}.tar", 5), f"https://host/{name}.tar", ()) for name in range(6)))
    plan = Plan(shards.counts, seed=0, window=2)
    fetcher = Recorder(tmp_path)
    prefetcher = Prefetcher(plan, shards, fetcher)
    for position in (0, 3, 9, 10, 19):  # two blocks of ten samples
        prefetcher.look_ahead(position)
    expected = [f"{number}.tar" for position in (10, 20) for number in plan.shards_of_block(position)]
    assert [fetcher.asked.get(timeout=10) for _ in expected] == expected
    assert fetcher.asked.empty()
