"""The loader: exactly once over ranks and workers, the same for any number of them, continued anywhere."""

import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from data.shards.index import read_headers
from data.shards.manifest import Shard
from data.shards.plan import Plan
from data.shards.reading.shard_batches import SKIPS
from data.shards.reading.shard_loader import Prefetcher, ShardLoader
from data.shards.remote.fetcher import Fetcher
from data.shards.shard_set import LocatedShard, ShardSet
from tests.fixtures.shards import AttributedSquare, make_loader

COUNTS = [5, 9, 1, 7, 4, 8, 3]  # 37 samples: prime, so nothing divides
TOTAL = sum(COUNTS)

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # more workers than cores, on purpose
    pytest.mark.filterwarnings("ignore:This process.*use of fork:DeprecationWarning"),
]


@pytest.fixture
def shards(make_shards: Callable[..., Path]) -> Path:
    return make_shards(COUNTS)


def loader(folder: Path, batch_size: int = 2, rank: int = 0, world_size: int = 1, **settings: Any) -> ShardLoader:
    transform = AttributedSquare(8)
    settings = {"seed": 1, "window": 3, "ceiling": 1.0} | settings
    return make_loader(folder, transform, batch_size, rank=rank, world_size=world_size, **settings)


def ids(batches: list[dict[str, Any]]) -> list[int]:
    return [number for batch in batches for number in batch["sample_id"].tolist()]


def read(folder: Path, passes: int = 1, **settings: Any) -> list[list[int]]:
    """Sample ids of every batch of some passes."""
    own = loader(folder, **settings)
    batches = [batch["sample_id"].tolist() for _ in range(passes) for batch in own]
    own.close()
    return batches


def interleave(ranks: list[list[list[int]]]) -> list[int]:
    """The sequence that ranks read together."""
    return [number for batches in zip(*ranks, strict=True) for batch in batches for number in batch]


def test_batches_are_what_they_say(shards: Path):
    for batch in loader(shards, batch_size=4):
        assert batch["pixels"].shape == (4, 3, 8, 8)
        assert (batch["pixels"].dtype, batch["sample_id"].dtype, batch["epoch"].dtype) == (
            torch.uint8,
            torch.int64,
            torch.int64,
        )
        red_and_green = batch["pixels"][:, :2, 0, 0].long()
        assert torch.equal(red_and_green[:, 0] + 256 * red_and_green[:, 1], batch["sample_id"])
        assert [row["number"] for row in batch["attributes"]] == batch["sample_id"].tolist()
        assert batch["valid"].all()
        assert set(batch) == {"pixels", "attributes", "sample_id", "epoch", "valid"}


@pytest.mark.parametrize(
    ("world_size", "num_workers"), [(1, 0), (1, 2), (1, 3), (2, 0), (2, 2), (2, 3), (3, 2), (4, 0), (4, 1)]
)
def test_every_sample_once_an_epoch_over_ranks_and_workers(shards: Path, world_size: int, num_workers: int):
    settings = {"world_size": world_size, "num_workers": num_workers, "start_method": "fork" if num_workers else None}
    # Enough passes for two whole epochs: passes are shorter than an epoch, and go on where the last ended.
    ranks = [read(shards, passes=3, rank=rank, **settings) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1, "every rank has equally many batches"
    sequence = interleave(ranks)
    epochs = [sequence[:TOTAL], sequence[TOTAL : 2 * TOTAL]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(TOTAL))] * 2
    assert epochs[0] != epochs[1]
    assert sequence == interleave([read(shards, passes=3 * world_size)])[: len(sequence)], "the same for any number"


@pytest.mark.heavy
@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_workers_started_afresh_see_every_sample_once(shards: Path, start_method: str):
    # Such workers know nothing of ranks or of what this process has set up.
    ranks = [read(shards, passes=2, rank=rank, world_size=2) for rank in range(2)]
    ranks[1] = read(shards, passes=2, rank=1, world_size=2, num_workers=2, start_method=start_method)
    assert sorted(interleave(ranks)[:TOTAL]) == list(range(TOTAL))


@pytest.mark.parametrize(
    ("start_method", "kind"),
    [
        ("fork", "ForkProcess"),
        pytest.param("spawn", "SpawnProcess", marks=pytest.mark.slow),
        pytest.param("forkserver", "ForkServerProcess", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_of_two_workers_see_every_sample_once_however_workers_start(
    shards: Path, start_method: str, kind: str, monkeypatch: pytest.MonkeyPatch
):
    # What a launcher may leave behind; nothing of it is looked up, neither here nor by the workers.
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    ranks: list[list[list[int]]] = []
    for rank in range(2):
        own = loader(shards, batch_size=3, rank=rank, world_size=2, num_workers=2, start_method=start_method)
        ranks.append([batch["sample_id"].tolist() for _ in range(3) for batch in own])
        workers = own._loader._iterator._workers  # type: ignore[union-attr]
        assert [type(worker).__name__ for worker in workers] == [kind] * 2
        own.close()
    assert len(ranks[0]) == len(ranks[1]) == 3 * 6
    sequence = interleave(ranks)
    epochs = [sequence[:TOTAL], sequence[TOTAL : 2 * TOTAL]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(TOTAL))] * 2
    assert epochs[0] != epochs[1]
    assert sequence == interleave([read(shards, batch_size=6, passes=4)])[: len(sequence)], "as one process reads it"


def test_runs_repeat_and_seeds_differ(shards: Path):
    assert read(shards, passes=2) == read(shards, passes=2)
    assert read(shards) != read(shards, seed=2)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_loader_that_seeks_reads_on_like_the_uninterrupted_one(shards: Path, world_size: int):
    settings = {"rank": world_size - 1, "world_size": world_size, "batch_size": 3}
    whole = read(shards, passes=4, **settings)
    for done in range(len(whole) // 2):
        resumed = loader(shards, **settings)
        resumed.seek(done * world_size * 3)
        rest = [batch["sample_id"].tolist() for _ in range(2) for batch in resumed]
        assert rest == whole[done : done + len(rest)]


def test_workers_that_read_ahead_do_not_move_the_place_to_go_on(shards: Path):
    running = loader(shards, num_workers=2, start_method="fork")
    iterator = iter(running)
    seen = [next(iterator)["sample_id"].tolist() for _ in range(5)]
    iterator.close()
    seen += [batch["sample_id"].tolist() for batch in running]
    running.close()
    assert seen == read(shards, passes=2)[: len(seen)]


def test_world_size_may_change_on_the_way(shards: Path):
    # Global batch of 6 at all times: 2 x 3, then 1 x 6 in two micro-batches, then 2 x 3 again.
    whole = [sorted(batch) for batch in read(shards, batch_size=6, passes=3)]
    seen: list[list[int]] = []
    for world_size, batch_size, steps in ((2, 3, 4), (1, 3, 5), (2, 3, 4)):
        ranks = [loader(shards, batch_size, rank, world_size) for rank in range(world_size)]
        for one in ranks:
            one.seek(6 * len(seen))
        endless = [iter_forever(one) for one in ranks]
        for _ in range(steps):
            micro_batches = [next(one) for _ in range(6 // (world_size * batch_size)) for one in endless]
            seen.append(sorted(ids(micro_batches)))
    assert seen == whole[: len(seen)]


def iter_forever(own: ShardLoader):
    while True:
        yield from own


def test_seek_puts_any_step_first(shards: Path):
    whole = [number for batch in read(shards, passes=4) for number in batch]
    own = loader(shards, batch_size=4)
    for step in (7, 0, 11, 3):
        own.seek(step * 4)
        assert ids([next(iter(own))]) == whole[step * 4 : step * 4 + 4]
    with pytest.raises(ValueError, match="`samples_consumed`=-1"):
        own.seek(-1)


def test_length_is_that_of_a_pass(shards: Path):
    for settings, expected in (
        ({"batch_size": 2, "batches": 5}, 5),
        ({"batch_size": 2, "batches": None}, 19),
        ({"batch_size": 2, "endless": False}, 19),
        ({"batch_size": 3, "world_size": 2, "endless": False}, 7),
    ):
        own = loader(shards, **settings)
        assert len(own) == len(list(own)) == len(list(own)) == expected, settings


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_pass_left_early_goes_on_in_a_whole_new_one(shards: Path, num_workers: int):
    own = loader(shards, num_workers=num_workers, start_method="fork" if num_workers else None)
    first = [next(iterator)["sample_id"].tolist() for iterator in [iter(own)] for _ in range(5)]
    iter(own)  # an iterator that nobody uses changes nothing
    second = [batch["sample_id"].tolist() for batch in own]
    assert len(second) == len(own)
    assert first + second == read(shards, passes=2)[: 5 + len(own)]


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 5), (2, 4), (2, 7)])
def test_evaluation_covers_each_sample_once_and_marks_what_fills_up(shards: Path, world_size: int, batch_size: int):
    settings = {"batch_size": batch_size, "world_size": world_size, "endless": False, "shuffle": False}
    ranks = [loader(shards, rank=rank, **settings) for rank in range(world_size)]
    for _ in range(2):  # each pass is the same
        batches = [list(own) for own in ranks]
        assert len({len(own) for own in batches}) == 1
        valid = [
            number
            for own in batches
            for batch in own
            for number, counts in zip(batch["sample_id"].tolist(), batch["valid"].tolist(), strict=True)
            if counts
        ]
        assert sorted(valid) == list(range(TOTAL))
        assert all(len(batch["sample_id"]) == batch_size for own in batches for batch in own)
        assert {epoch for own in batches for batch in own for epoch in batch["epoch"].tolist()} == {0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_workers": 8}, r"7 shards are fewer than 8 readers \(1 processes x 8 workers\): use at most 7 workers"),
        ({"world_size": 4, "num_workers": 2}, "fewer than 8 readers.*at most 1 workers a process.*samples-per-shard"),
        ({"world_size": 8}, r"fewer than 8 readers \(8 processes x 1 workers\): use at most 7 processes"),
        ({"batch_size": 0}, "`batch_size`=0"),
        ({"rank": 1}, "`rank`=1 must be a whole number from 0 to 0"),
        ({"rank": -1}, "`rank`=-1"),
        ({"batches": 0}, "`batches`=0"),
        ({"num_workers": -1}, "`num_workers`=-1"),
        ({"ceiling": 2.0}, "`ceiling`=2.0"),
    ],
)
def test_impossible_settings_are_refused_with_numbers(shards: Path, settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        loader(shards, **settings)


def spoil(folder: Path) -> dict[str, int]:
    """Cut shard 1 after 4 of 9 samples, remove shard 3 of 7, make two pictures of shard 5 into rubbish."""
    path = folder / "00001.tar"
    offset, _ = read_headers(path).samples[4][1]["png"]
    path.write_bytes(path.read_bytes()[: offset + 3])
    (folder / "00003.tar").unlink()
    for number in (2, 6):
        offset, size = read_headers(folder / "00005.tar").samples[number][1]["png"]
        with (folder / "00005.tar").open("r+b") as file:
            file.seek(offset)
            file.write(b"x" * size)
    return {"truncated shard": 5, "missing shard": 7}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_samples_are_replaced_and_counted_exactly(shards: Path, num_workers: int, tmp_path: Path):
    expected = spoil(shards)
    settings = {"num_workers": num_workers, "start_method": "fork" if num_workers else None}
    ranks = [
        loader(shards, rank=rank, world_size=2, batch_size=1, report=tmp_path / f"{rank}.jsonl", **settings)
        for rank in range(2)
    ]
    batches: list[list[dict[str, Any]]] = [[], []]
    for rank, own in enumerate(ranks):
        for _ in range(2):
            batches[rank].extend(own)
        own.close()
    # 36 positions a pass: two passes are an epoch of 37 and 35 of the next. Count over the whole first epoch.
    sequence = [batch for pair in zip(*batches, strict=True) for batch in pair]
    lost = {shard_start(1) + number for number in range(4, 9)} | {shard_start(3) + number for number in range(7)}
    lost |= {shard_start(5) + 2, shard_start(5) + 6}
    seen = Counter(ids(sequence[:TOTAL]))
    assert set(seen) == set(range(TOTAL)) - lost
    assert seen.total() == TOTAL, "batches keep their size"
    counts = ranks[0].skips.counts + ranks[1].skips.counts
    assert sum(counts.values()) == sum(
        ranks[0].plan.place(position).sample_id in lost for position in range(len(sequence))
    )
    assert set(counts) == {*expected, *(reason for reason in counts if reason.startswith(("the ", "this is a file")))}
    assert len(set(counts)) == 3
    for rank, own in enumerate(ranks):
        named = [json.loads(line)["name"] for line in (tmp_path / f"{rank}.jsonl").read_text().splitlines()]
        assert len(named) == len(set(named)), "each is named once"
        assert set(named) == set(own.skips.names)
        assert set(named) <= {str(shards / name) for name in ("00001.tar", "00003.tar", "00005.tar[2]", "00005.tar[6]")}
    assert len(ranks[0].skips.names | ranks[1].skips.names) == 4


def shard_start(shard: int) -> int:
    return sum(COUNTS[:shard])


def test_counters_of_an_epoch_equal_the_manifest_minus_the_loss(shards: Path):
    expected = spoil(shards)
    own = loader(shards, batch_size=1, batches=TOTAL)
    seen = set(ids(list(own)))
    assert own.skips.seen == TOTAL
    assert own.skips.skipped == TOTAL - len(seen) == 14
    assert {reason: own.skips.counts[reason] for reason in expected} == expected
    assert sum(count for reason, count in own.skips.counts.items() if reason not in expected) == 2


def test_substitutes_are_the_same_for_any_world_size(shards: Path):
    spoil(shards)
    alone = [number for batch in read(shards, batch_size=6) for number in batch]
    together = interleave([read(shards, batch_size=3, rank=rank, world_size=2) for rank in range(2)])
    assert alone == together


def test_evaluation_does_not_count_substitutes_as_valid(shards: Path):
    spoil(shards)
    batches = list(loader(shards, batch_size=5, endless=False, shuffle=False))
    valid = [
        number
        for batch in batches
        for number, counts in zip(batch["sample_id"].tolist(), batch["valid"].tolist(), strict=True)
        if counts
    ]
    assert len(valid) == len(set(valid)) == TOTAL - 14


def test_too_much_loss_stops_the_run(shards: Path):
    own = loader(shards, batch_size=1, batches=TOTAL, ceiling=0.005)  # 5 in a thousand
    spoil(shards)
    with pytest.raises(RuntimeError, match=r"6 of the last \d+ samples could not be read, above the ceiling of 0\.50%"):
        list(own)


def test_too_much_loss_that_can_be_seen_before_is_refused(shards: Path, caplog: pytest.LogCaptureFixture):
    spoil(shards)
    with pytest.raises(ValueError, match=r"\d+ of \d+ samples could not be read, above the ceiling of 0\.50%.*\.tar"):
        loader(shards, batch_size=1, ceiling=0.005)
    report = shards.parent / "report.txt"
    assert loader(shards, batch_size=1, ceiling=1.0, report=report).skips.counts == {}
    for line in map(json.loads, report.read_text().splitlines()):
        assert line["name"] in caplog.text


def test_nothing_readable_is_an_error_not_a_loop(shards: Path):
    for path in shards.glob("*.tar"):
        path.unlink()
    with pytest.raises(RuntimeError, match="No readable sample in 64 attempts"):
        next(iter(loader(shards)))


def test_a_bad_sample_costs_little(shards: Path, monkeypatch: pytest.MonkeyPatch):
    # webdataset's own handler sleeps half a second for each.
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("slept"))
    spoil(shards)
    list(loader(shards))


def test_dataset_is_picklable_and_small(shards: Path):
    own = loader(shards)
    list(own)
    assert len(pickle.dumps(own.dataset)) < 20_000
    copied = pickle.loads(pickle.dumps(own.dataset))
    assert torch.equal(copied[5]["sample_id"], own.dataset[5]["sample_id"])


def test_lightning_leaves_it_as_it_is(shards: Path):
    own = loader(shards)
    assert not hasattr(own, "state_dict"), "the trainer's step alone says where to go on"
    assert not isinstance(own, torch.utils.data.DataLoader), "Lightning would put its own sampler into one"


def test_the_skips_do_not_reach_the_training(shards: Path):
    assert all(SKIPS not in batch for batch in loader(shards))


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
