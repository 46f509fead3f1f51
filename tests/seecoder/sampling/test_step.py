"""The seed of a step's random choices."""

import torch

from seecoder.sampling.step import Step


def step(index: int = 3, stage: int = 1, keys: tuple[int, ...] = (11, 12)) -> Step:
    return Step(index, 10, torch.tensor(500), 500.0, 1000, (16, 16), (8, 8), stage, keys)


def test_a_key_is_a_pure_function_of_picture_stage_and_step() -> None:
    assert step().key(0) == step().key(0)
    assert len({step().key(0), step().key(1), step(index=4).key(0), step(stage=2).key(0)}) == 4


def test_a_key_does_not_depend_on_the_other_pictures_of_the_batch() -> None:
    assert step(keys=(11,)).key(0) == step(keys=(11, 99)).key(0)


def test_a_step_without_seeds_still_has_keys() -> None:
    assert step(keys=()).key(0) != step(index=4, keys=()).key(0)
