"""What a region is: hue, shape and texture."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.world.reader.attributes import (
    background_degrees,
    background_hue,
    circular_mean,
    count_horizons,
    object_hue,
    shape_fit,
    texture,
)
from data.world.reader.readings import read
from data.world.reader.segmentation import regions, saturated_mask
from data.world.render import render
from data.world.scenes import SHAPES, sample_scenes


def test_hues_are_averaged_around_the_circle():
    degrees = np.array([350.0, 10.0], dtype=np.float32)
    assert circular_mean(degrees, np.ones(2, dtype=np.float32)) % 360 == pytest.approx(0, abs=1e-3) or circular_mean(
        degrees, np.ones(2, dtype=np.float32)
    ) == pytest.approx(360, abs=1e-3)
    assert circular_mean(np.array([0.0, 90.0], dtype=np.float32), np.array([0.0, 1.0], dtype=np.float32)) == 90


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_a_region_is_told_by_its_attributes(shape: int):
    scenes = replace(sample_scenes(6, seed=40 + shape), shape=torch.full((6,), shape))
    for row, pixels in enumerate(render(scenes, 96).numpy()):
        mask = saturated_mask(pixels)
        (region,) = regions(pixels, mask)
        found, fit = shape_fit(region)
        assert found == shape
        assert 0.8 < fit <= 1
        assert object_hue(pixels, region) == int(scenes.hue[row])
        assert texture(pixels, region) == int(scenes.texture[row])
        assert background_hue(pixels, mask) == int(scenes.background[row])


def test_background_hue_is_that_of_the_scene():
    scenes = sample_scenes(12, 3)
    for pixels, degrees in zip(render(scenes, 64).numpy(), scenes.background_degrees, strict=True):
        found = background_degrees(pixels, saturated_mask(pixels))
        assert abs((found - float(degrees) + 180) % 360 - 180) < 6


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
