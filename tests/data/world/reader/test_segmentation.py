"""Saturated regions are found, and parted where hues differ."""

import numpy as np
import pytest

from data.world.reader.segmentation import chroma, hue_degrees, regions, saturated_mask


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
