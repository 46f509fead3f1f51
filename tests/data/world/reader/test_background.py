"""Horizons are counted by the bands of ground in a column."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.world.reader.background import count_horizons
from data.world.reader.readings import read
from data.world.render import render
from data.world.scenes import sample_scenes


def test_repeated_horizons_are_counted():
    scenes = replace(sample_scenes(20, seed=7), center_x=torch.full((20,), 5.0))
    stacked = render(scenes, 64).repeat(1, 1, 2, 1)
    assert np.mean([reading.num_horizons for reading in read(stacked)]) == pytest.approx(2, abs=0.1)


def test_a_covered_horizon_is_still_one():
    image = np.full((3, 64, 64), 0.8, dtype=np.float32)
    image[:, 40:] = 0.4
    mask = np.zeros((64, 64), dtype=np.bool_)
    mask[30:50, 20:44] = True
    image[:, mask] = np.array([[1.0], [0.0], [0.0]], dtype=np.float32)
    assert count_horizons(image, mask) == pytest.approx(1)


def test_an_even_background_has_none():
    assert count_horizons(np.full((3, 64, 64), 0.5, dtype=np.float32), np.zeros((64, 64), dtype=np.bool_)) == 0
