import torch

from train.sources.stage_data import Position, Shuffle, StepStream


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
