"""The order of data: a pure function, exactly once an epoch, continued by one number."""

import pickle

import numpy as np
import pytest

from data.shards.plan import Plan, derive_seed, permutation

COUNTS = [7, 1, 0, 12, 5, 9, 3]


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": []}, "no samples"),
        ({"samples": [0, 0]}, "no samples"),
        ({"samples": [3, -1]}, r"`samples`=\[3, -1\] must be"),
        ({"samples": [3], "window": 0}, "`window`=0"),
    ],
)
def test_bad_arguments(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Plan(**arguments)
