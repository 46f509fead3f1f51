"""Random numbers that depend on seed, index and field alone."""

import numpy as np

from data.world.counter_random import uniform


def test_numbers_do_not_depend_on_the_batch():
    whole = uniform(3, np.arange(50), 4)
    assert np.array_equal(uniform(3, np.array([7, 49, 7]), 4), whole[[7, 49, 7]])
    assert np.array_equal(uniform(3, np.arange(50), 2), whole[:, :2])


def test_numbers_are_uniform_and_unrelated():
    draws = uniform(0, np.arange(20_000), 3)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert np.abs(draws.mean(0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(np.hstack([draws, uniform(1, np.arange(20_000), 3)]).T) - np.eye(6)).max() < 0.03


def test_numbers_are_pinned():
    # Scenes, and all that was trained on them, change with these.
    assert uniform(5, np.array([0, 9]), 2).tolist() == [
        [0.07523593688563857, 0.8424401342587975],
        [0.5325838845937464, 0.7483233468320348],
    ]
