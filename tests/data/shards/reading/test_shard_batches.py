"""A batch is what its position says, whoever asks for it and when."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data.shards.plan import Plan
from data.shards.reading.shard_batches import SKIPS, ShardBatches
from data.shards.reading.skips import NoReadableSample
from data.shards.reading.square_image import SquareImage
from data.shards.shard_set import open_shards


def batches(folder: Path, endless: bool = True) -> ShardBatches:
    shards = open_shards(folder)
    return ShardBatches(shards, Plan(shards.counts, seed=1, window=2), SquareImage(8), 4, endless=endless)


def test_a_batch_holds_the_samples_of_its_positions(make_shards: Callable[..., Path]):
    own = batches(make_shards([3, 4]))
    later, first = own[5], own[0]
    for start, batch in ((0, first), (5, later)):
        places = [own.plan.place(position) for position in range(start, start + 4)]
        assert batch["sample_id"].tolist() == [place.sample_id for place in places]
        assert batch["epoch"].tolist() == [place.epoch for place in places]
        assert batch["pixels"][:, 0, 0, 0].tolist() == [place.sample_id for place in places]
        assert batch["valid"].all()
        assert batch[SKIPS] == ()
    assert torch.equal(own[0]["pixels"], first["pixels"])


def test_beyond_the_end_of_an_evaluation_nothing_is_valid(make_shards: Callable[..., Path]):
    batch = batches(make_shards([3, 3]), endless=False)[4]
    assert batch["valid"].tolist() == [True, True, False, False]
    assert batch["epoch"].tolist() == [0] * 4


def test_a_skip_travels_in_the_batch_and_a_substitute_fills_it(make_shards: Callable[..., Path]):
    folder = make_shards([4, 4])
    (folder / "00001.tar").unlink()
    own = batches(folder)
    found = [own[start] for start in (0, 4)]
    assert sorted(skip.sample_id for batch in found for skip in batch[SKIPS]) == [4, 5, 6, 7]
    assert {skip.reason for batch in found for skip in batch[SKIPS]} == {"missing shard"}
    assert all(number < 4 for batch in found for number in batch["sample_id"].tolist())


def test_shards_that_are_all_gone_are_an_error(make_shards: Callable[..., Path]):
    folder = make_shards([4])
    (folder / "00000.tar").unlink()
    with pytest.raises(NoReadableSample, match="position 0"):
        batches(folder)[0]


def test_a_picture_of_another_size_than_the_manifest_says_is_counted_and_no_batch_of_two_shapes(make_shards):
    shards = open_shards(make_shards([4, 4]))
    labels, shapes = np.array([0, 1] * 4), np.array([[8, 8], [8, 16]])  # all of them are squares
    plan = Plan(shards.counts, seed=1, buckets=labels, shapes=shapes, group=2)
    own = ShardBatches(shards, plan, SquareImage(8), 2)
    group = next(start for start in range(0, 8, 2) if plan.place(start).sample_id % 2 == 0)
    assert own[group][SKIPS] == ()
    wrong = next(start for start in range(0, 8, 2) if plan.place(start).sample_id % 2)
    with pytest.raises(NoReadableSample, match=r"measure it anew"):
        own[wrong]
