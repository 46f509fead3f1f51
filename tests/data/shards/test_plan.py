"""The order of data: a pure function, exactly once an epoch, continued by one number."""

import itertools
import pickle

import numpy as np
import pytest

from data.shards.buckets import Buckets
from data.shards.plan import Plan, derive_seed, permutation

COUNTS = [7, 1, 0, 12, 5, 9, 3]
PINNED, PINNED_SUBSTITUTES = [26, 30, 0, 28, 31, 4, 6, 33, 2, 1, 32, 27], [15, 15, 24, 26]


def order(plan: Plan, epoch: int) -> list[int]:
    return [plan.place(epoch * len(plan) + position).sample_id for position in range(len(plan))]


@pytest.mark.parametrize("window", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_epoch_holds_every_sample_once(window: int, shuffle: bool):
    plan = Plan(COUNTS, seed=3, window=window, shuffle=shuffle)
    for epoch in (0, 1, 5):
        assert sorted(order(plan, epoch)) == list(range(sum(COUNTS)))


def test_a_place_names_the_sample_of_its_id():
    plan = Plan(COUNTS, seed=3, window=3)
    ids = [(shard, number) for shard, count in enumerate(COUNTS) for number in range(count)]
    for position in range(2 * len(plan)):
        place = plan.place(position)
        assert ids[place.sample_id] == (place.shard, place.number)
        assert place.epoch == position // len(plan)


def test_orders_differ_over_epochs_and_seeds_and_repeat_over_runs():
    orders = [order(Plan(COUNTS, seed=seed, window=3), epoch) for seed in (0, 1) for epoch in range(4)]
    assert len({tuple(one) for one in orders}) == 8
    assert order(Plan(COUNTS, seed=1, window=3), 2) == orders[6]


def test_order_does_not_depend_on_what_was_asked_before():
    asked_backwards = Plan(COUNTS, seed=5, window=2)
    backwards = [asked_backwards.place(position) for position in reversed(range(200))]
    assert backwards[::-1] == [Plan(COUNTS, seed=5, window=2).place(position) for position in range(200)]


def test_order_is_pinned():
    # A change here silently breaks the resume of every run: raise the plan's version instead.
    assert derive_seed(1, "shards", 0) == 4329293228667120886
    assert permutation(8, 1, "shards", 0).tolist() == [5, 7, 6, 2, 3, 4, 0, 1]
    plan = Plan(COUNTS, seed=5, window=2)
    assert order(plan, 1)[:12] == PINNED
    assert [plan.substitute(17, attempt).sample_id for attempt in (0, 1, 8, 9)] == PINNED_SUBSTITUTES


def test_without_shuffling_the_order_is_the_manifests():
    assert order(Plan(COUNTS, shuffle=False), 3) == list(range(sum(COUNTS)))


def test_only_a_window_of_shards_is_open_at_a_time():
    counts, window = [10] * 12, 4
    plan = Plan(counts, seed=0, window=window)
    shards = [plan.place(position).shard for position in range(len(plan))]
    blocks = [set(shards[first : first + 40]) for first in range(0, 120, 40)]
    assert [len(block) for block in blocks] == [window] * 3
    assert blocks[0] == set(plan.shards_of_block(39))
    assert blocks[1] == set(plan.shards_of_block(0, ahead=1))
    assert set(plan.shards_of_block(119, ahead=1)) == set(plan.shards_of_block(120))


def test_samples_are_mixed_over_the_window():
    # Position of one sample over many epochs: uniform, so mean n/2 with standard error n/sqrt(12 * epochs).
    plan = Plan([20] * 5, seed=0, window=5)
    positions = [order(plan, epoch).index(0) for epoch in range(150)]
    assert abs(np.mean(positions) - 49.5) < 4 * 100 / np.sqrt(12 * 150)
    assert abs(np.std(positions) - 100 / np.sqrt(12)) < 5


def test_substitutes_are_pure_and_stay_near_at_first():
    plan = Plan([10] * 12, seed=0, window=4)
    near = set(plan.shards_of_block(45))
    chosen = [plan.substitute(45, attempt) for attempt in range(40)]
    assert chosen == [Plan([10] * 12, seed=0, window=4).substitute(45, attempt) for attempt in range(40)]
    assert all(place.shard in near for place in chosen[:8])
    assert {place.shard for place in chosen[8:]} - near
    assert {place.epoch for place in chosen} == {0}


def test_workers_get_a_plan_without_its_caches():
    plan = Plan([1000] * 30, seed=0)
    before = len(pickle.dumps(plan))
    places = [plan.place(position) for position in range(0, 90_000, 500)]
    assert len(pickle.dumps(plan)) == before
    copy = pickle.loads(pickle.dumps(plan))
    assert [copy.place(position) for position in range(0, 90_000, 500)] == places


def mixed_sizes(count: int = 10_000) -> np.ndarray:
    """Heights and widths of pictures of many proportions and areas."""
    generator = np.random.default_rng(0)
    proportions, sides = np.exp(generator.normal(0, 0.4, count)), generator.uniform(300, 1500, count)
    return np.stack([sides * np.sqrt(proportions), sides / np.sqrt(proportions)], 1).astype(np.uint32)


def bucket_plan(labels: np.ndarray, group: int = 16, window: int = 8) -> Plan:
    return Plan([100] * (len(labels) // 100), seed=3, window=window, buckets=labels, group=group)


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    shapes = Buckets(resolutions=(512, 1024)).choose(mixed_sizes())
    return np.unique(shapes, axis=0, return_inverse=True)[1].reshape(-1)


def test_ten_thousand_mixed_sizes_come_exactly_once_an_epoch_in_groups_of_one_bucket(labels: np.ndarray) -> None:
    plan, epochs = bucket_plan(labels), 2
    places = [plan.place(position) for position in range(epochs * 10_000 // 16 * 16)]
    groups = labels[[place.sample_id for place in places]].reshape(-1, 16)
    assert (groups == groups[:, :1]).all()
    keys = [(place.epoch, place.sample_id) for place in places]
    assert len(set(keys)) == len(keys), "no sample of an epoch comes twice"
    for epoch in range(epochs):
        behind = {sample for one, sample in keys if one == epoch}
        missing = np.bincount(np.delete(labels, sorted(behind)), minlength=labels.max() + 1)
        # What an epoch lacks came in the next one; after the last, less than a group of each bucket waits.
        assert missing.max() < (16 if epoch == epochs - 1 else 1)
    assert {place.epoch for place in places[:9_000]} == {0}


def test_ranks_workers_and_restarts_with_another_world_size_read_the_same_groups(labels: np.ndarray) -> None:
    """A global batch of 48 by (processes, samples of each at a time), each for some steps after the other."""
    plan, read, position = bucket_plan(labels), [], 0
    for processes, batch_size, steps in ((1, 16, 60), (3, 16, 40), (6, 8, 30), (3, 4, 200), (2, 8, 100)):
        for _ in range(steps):
            for rank in range(processes):
                ids = [plan.place(position + rank * batch_size + row).sample_id for row in range(batch_size)]
                assert len(set(labels[ids])) == 1, "a batch is of one bucket"
                read += ids
            position += processes * batch_size
    assert read == [bucket_plan(labels).place(number).sample_id for number in range(position)]


def test_an_order_by_buckets_is_not_one_of_buckets(labels: np.ndarray) -> None:
    plan = bucket_plan(labels)
    buckets = [labels[plan.place(position).sample_id] for position in range(0, 8000, 16)]
    same = sum(one == other for one, other in itertools.pairwise(buckets))
    expected = 500 * ((np.bincount(labels) / len(labels)) ** 2).sum()  # neighbours of one bucket by chance
    assert same < 2 * expected
    orders = {tuple(plan.place(epoch * 10_000 + row).sample_id for row in range(32)) for epoch in range(3)}
    assert len(orders) == 3


def test_few_shards_are_open_at_a_time_with_buckets(labels: np.ndarray) -> None:
    plan = bucket_plan(labels, window=4)
    for first in range(2000, 8000, 400):
        shards = [plan.place(position).shard for position in range(first, first + 400)]
        near = {shard for ahead in range(-3, 2) for shard in plan.shards_of_block(first, ahead)}
        assert sum(shard in near for shard in shards) > 0.9 * len(shards)


def test_substitutes_are_of_the_bucket(labels: np.ndarray) -> None:
    plan = bucket_plan(labels)
    for position in (0, 777, 9_999, 12_345):
        own = labels[plan.place(position).sample_id]
        chosen = [plan.substitute(position, attempt) for attempt in range(20)]
        assert {labels[place.sample_id] for place in chosen} == {own}
        assert len({place.sample_id for place in chosen}) > 3
        assert chosen == [bucket_plan(labels).substitute(position, attempt) for attempt in range(20)]


def test_a_bucket_of_less_than_a_group_comes_every_few_epochs_and_as_often_as_the_others() -> None:
    labels = np.zeros(100, int)
    labels[:3] = 1
    plan = bucket_plan(labels, group=4)
    keys = [(place.epoch, place.sample_id) for place in map(plan.place, range(100 * 40))]
    assert len(set(keys)) == len(keys)
    counts = np.bincount([sample for _, sample in keys], minlength=100)
    assert counts.min() >= 39
    assert counts.max() <= 41


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": []}, "no samples"),
        ({"samples": [0, 0]}, "no samples"),
        ({"samples": [3, -1]}, r"`samples`=\[3, -1\] must be"),
        ({"samples": [3], "window": 0}, "`window`=0"),
        ({"samples": [3], "group": 0}, "`group`=0"),
    ],
)
def test_bad_arguments(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Plan(**arguments)
