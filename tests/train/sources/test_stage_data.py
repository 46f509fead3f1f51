from types import SimpleNamespace
from typing import Any

import pytest
import torch

from train.sources.stage_data import Position, Shuffle, StageData, StepStream


def samples(count: int, batch_size: int, position: Position, seed: int = 0) -> list[list[int]]:
    shuffle = Shuffle(count, seed)
    return [batch[:, 1].tolist() for batch in StepStream(shuffle.keys, lambda keys: keys, batch_size, position)]


def test_every_epoch_holds_every_sample_once_in_an_order_of_its_own():
    shuffle = Shuffle(10, seed=0)
    keys = shuffle.keys(0, 30)
    assert keys[:, 0].tolist() == [0] * 10 + [1] * 10 + [2] * 10
    epochs = keys[:, 1].view(3, 10)
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3
    assert torch.equal(keys, Shuffle(10, seed=0).keys(0, 30))
    assert not torch.equal(keys, Shuffle(10, seed=1).keys(0, 30))


def test_looking_back_gives_the_same_order():
    shuffle = Shuffle(7, seed=0)
    first = shuffle.keys(3, 9)
    shuffle.keys(70, 9)
    assert torch.equal(shuffle.keys(3, 9), first)


def test_a_global_batch_does_not_depend_on_how_it_is_shared():
    whole = samples(11, 8, Position(0, 4))
    accumulated = samples(11, 2, Position(0, 4, accumulate=4))
    joined = [[sample for batch in accumulated[step * 4 : step * 4 + 4] for sample in batch] for step in range(4)]
    assert joined == whole
    ranks = [samples(11, 2, Position(0, 4, accumulate=2, rank=rank, world_size=2)) for rank in range(2)]
    for step in range(4):
        shared = [sample for rank in ranks for batch in rank[2 * step : 2 * step + 2] for sample in batch]
        assert sorted(shared) == sorted(whole[step])


def test_continuing_at_any_step_gives_the_rest():
    whole = samples(11, 3, Position(0, 9, accumulate=2))
    for first in range(10):
        position = Position(first, 9, accumulate=2)
        rest = samples(11, 3, position)
        assert rest == whole[2 * first :]
        assert len(StepStream(Shuffle(11, 0).keys, lambda keys: keys, 3, position)) == len(rest)


def running(batch_size: int, step: int = 0, world_size: int = 1, **options) -> Any:
    """A source of a training that is at a step."""
    data: Any = StageData(batch_size, **options)
    facts = {"global_step": step, "max_steps": 9, "accumulate_grad_batches": 2, "global_rank": 0}
    data.trainer = SimpleNamespace(**facts, world_size=world_size)
    return data


def continued(saved: dict, **options) -> Any:
    data = running(step=saved["step"], **options)
    data.load_state_dict(saved)
    return data


def test_another_global_batch_goes_on_with_the_first_sample_that_was_not_used():
    data = running(4)
    assert data.position(samples=100).samples == 0
    data.trainer.global_step = 5
    saved = data.state_dict()
    assert saved["samples"] == 5 * 2 * 4
    data = continued(saved, batch_size=3, world_size=2)
    assert data.position(samples=100).samples_before(3) == 40
    data.trainer.global_step += 2
    assert data.state_dict()["samples"] == 40 + 2 * 2 * 2 * 3


def test_another_order_is_refused_with_numbers_or_begins_the_next_epoch(capsys):
    data = running(4)
    data.position(samples=32, shards=2)
    data.trainer.global_step = 5
    saved = data.state_dict()
    refused = r"samples: 32 there, 40 now.*8 of the 32 samples of epoch 1 were used.*--run.changed_order new_epoch"
    with pytest.raises(ValueError, match=refused):
        continued(saved, batch_size=4).position(samples=40, shards=2)
    data = continued(saved, batch_size=4)
    data.may_begin_epoch = True
    assert data.position(samples=40, shards=2).samples == 2 * 40
    assert "epoch 2 begins here" in capsys.readouterr().out
    again = continued(data.state_dict(), batch_size=4)
    assert again.position(samples=40, shards=2).samples == 2 * 40, "the new order is the checkpoint's now"


def test_another_seed_is_another_order_and_other_contents_are_said(capsys):
    data = running(4)
    data.position(samples=32, contents="a")
    saved = data.state_dict()
    with pytest.raises(ValueError, match="seed: 0 there, 1 now"):
        continued(saved, batch_size=4, seed=1).position(samples=32, contents="a")
    assert continued(saved, batch_size=4).position(samples=32, contents="b").samples == 0
    assert "other contents than at the checkpoint (contents: a there, b now)" in capsys.readouterr().out


def test_checkpoints_from_before_there_were_counts_go_on_by_steps():
    assert running(4, step=3).position(samples=32).samples == 3 * 2 * 4
