"""Saturated regions are found, and parted where hues differ."""

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch

from data.world.reader.segmentation import chroma, hue_degrees, regions, saturated_mask
from data.world.render import render
from data.world.scenes import sample_scenes


def picture(*boxes: tuple[slice, slice, tuple[float, float, float]]) -> np.ndarray:
    """Boxes of one colour each on grey, (3, 64, 64)."""
    image = np.full((3, 64, 64), 0.5, dtype=np.float32)
    for rows, columns, color in boxes:
        image[:, rows, columns] = np.array(color, dtype=np.float32).reshape(3, 1, 1)
    return image


RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def test_chroma_and_hue_are_those_of_hsv():
    image = np.array([[1.0, 0.0, 0.5], [0.5, 1.0, 0.5], [0.0, 0.0, 0.5]], dtype=np.float32)[:, None]
    assert chroma(image)[0].tolist() == [1.0, 1.0, 0.0]
    assert hue_degrees(image)[0, :2].tolist() == pytest.approx([30, 120], abs=0.01)


def test_regions_are_found_largest_first():
    image = picture((slice(5, 15), slice(5, 15), RED), (slice(30, 50), slice(30, 50), RED))
    found = regions(image, saturated_mask(image))
    assert [region.area for region in found] == pytest.approx([400, 100], abs=8)
    assert found[0].box == (slice(30, 50), slice(30, 50))


def test_regions_that_touch_are_parted_by_hue_alone():
    apart = picture((slice(20, 40), slice(10, 30), RED), (slice(20, 40), slice(30, 50), BLUE))
    one = picture((slice(20, 40), slice(10, 30), RED), (slice(20, 40), slice(30, 50), RED))
    assert len(regions(apart, saturated_mask(apart))) == 2
    assert len(regions(one, saturated_mask(one))) == 1


def test_grey_has_no_regions():
    image = picture()
    assert not saturated_mask(image).any()
    assert regions(image, saturated_mask(image)) == []


def test_every_single_object_is_one_region_whatever_mixes_along_its_outline():
    # A plain magenta star over some backgrounds used to be three: the hues that mix along a long outline counted.
    scenes = sample_scenes(600, seed=12)
    plain_stars = replace(scenes, shape=torch.full((600,), 3), texture=torch.zeros(600, dtype=torch.long))
    for image in render(plain_stars, 64).numpy():
        assert len([part for part in regions(image, saturated_mask(image)) if part.area >= 62]) == 1


@pytest.mark.parametrize("apart", [31, 45, 180])
def test_touching_objects_are_parted_from_31_degrees_on(apart):
    def color(hue: float) -> tuple[float, float, float]:
        return colorsys.hsv_to_rgb(hue % 360 / 360, 0.9, 0.9)

    for hue in range(0, 360, 20):
        image = picture((slice(20, 40), slice(10, 30), color(hue)), (slice(20, 40), slice(30, 50), color(hue + apart)))
        assert len(regions(image, saturated_mask(image))) == 2, hue
