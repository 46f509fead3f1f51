"""Every picture has its own random stream."""

from typing import Any

import pytest
import torch

from seecoder.sampling.randomness import Randomness

CPU = torch.device("cpu")


def seeded(value: int) -> torch.Generator:
    return torch.Generator().manual_seed(value)


def drawn(randomness: Randomness, pictures: int) -> torch.Tensor:
    return randomness.normal((pictures, 2, 3), CPU, torch.float32)


def test_a_picture_draws_the_same_in_every_batch() -> None:
    alone = drawn(Randomness([seeded(2)], 1), 1)
    assert torch.equal(drawn(Randomness([seeded(1), seeded(2)], 2), 2)[1:], alone)
    together = drawn(Randomness(seeded(5), 4), 4)
    assert torch.equal(drawn(Randomness(seeded(5), 2), 2), together[:2])
    assert len({float(row.sum()) for row in together}) == 4


def test_a_batch_of_one_draws_from_the_given_generator_itself() -> None:
    assert torch.equal(drawn(Randomness(seeded(5), 1), 1), torch.randn((1, 2, 3), generator=seeded(5)))


def test_later_pictures_do_not_advance_the_given_generator() -> None:
    generator = seeded(5)
    Randomness(generator, 4)
    assert torch.equal(generator.get_state(), seeded(5).get_state())


@pytest.mark.parametrize("wrong", [42, [42], [None], "42"])
def test_a_seed_in_the_place_of_a_generator_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"`generator`=.* must be a Generator or a list with one for every picture"):
        Randomness(wrong, 1)


def test_uniform_numbers_and_keys_come_from_each_pictures_stream() -> None:
    numbers = Randomness([seeded(1), seeded(2)], 2).uniform((2, 1000), CPU, torch.float64)
    assert 0.0 <= float(numbers.min()) < 0.01
    assert 0.99 < float(numbers.max()) < 1.0
    alone = Randomness([seeded(2)], 1)
    assert torch.equal(alone.uniform((1, 1000), CPU, torch.float64), numbers[1:])
    assert Randomness([seeded(1), seeded(2)], 2).keys()[1:] == Randomness([seeded(2)], 1).keys()


def test_without_a_generator_streams_follow_the_global_seed() -> None:
    torch.manual_seed(7)
    first = drawn(Randomness(None, 2), 2)
    torch.manual_seed(7)
    assert torch.equal(drawn(Randomness(None, 2), 2), first)


def test_there_has_to_be_one_generator_a_picture() -> None:
    with pytest.raises(ValueError, match="`generator` has 3 entries for 2 pictures"):
        Randomness([seeded(1), seeded(2), seeded(3)], 2)
