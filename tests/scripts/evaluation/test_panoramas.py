from dataclasses import replace

import pytest
import torch

from data.world.render import render
from data.world.scenes import sample_scenes
from scripts.evaluation.panoramas import (
    background_degrees,
    hue_spread,
    judged_panoramas,
    native_windows,
    seam_error,
)


@pytest.mark.parametrize(("degrees", "spread"), [((10, 10), 0), ((0, 180), 180), ((350, 10), 20), ((0, 90, 180), 120)])
def test_spread_of_hues_on_the_circle(degrees, spread):
    assert hue_spread(degrees) == pytest.approx(spread)


def test_background_hue_is_that_of_the_scene():
    scenes = sample_scenes(12, 3)
    for pixels, degrees in zip(render(scenes, 64), scenes.background_degrees, strict=True):
        assert abs((background_degrees(pixels.numpy()) - float(degrees) + 180) % 360 - 180) < 6


def test_seam_of_a_loop_and_of_a_ramp():
    columns = torch.arange(64)
    loop = torch.sin(2 * torch.pi * 3 * columns / 64).expand(3, 16, 64)
    assert seam_error(loop) == pytest.approx(1.0, abs=0.6)
    assert seam_error((columns / 64).expand(3, 16, 64)) == pytest.approx(63.0, rel=1e-3)


def test_windows_lie_side_by_side():
    panorama = torch.arange(3 * 4 * 10).view(3, 4, 10)
    left, right = native_windows(panorama)
    assert torch.equal(torch.cat([left, right], dim=-1), panorama[..., :8])


def test_an_object_across_the_seam_counts_once():
    """Four scenes of one background side by side, rolled so that the first object lies across the seam."""
    scenes = sample_scenes(1, 1)[torch.zeros(4, dtype=torch.int64)]
    panorama = torch.cat(list(render(scenes, 64)), dim=-1).roll(-32, dims=-1)
    numbers = judged_panoramas(panorama[None])
    assert numbers["objects"] == pytest.approx(1.0)
    assert numbers["hue_spread"] < 3


def test_different_backgrounds_spread():
    scenes = replace(
        sample_scenes(4, 1),
        background_degrees=torch.tensor([0.0, 90.0, 180.0, 270.0]),
        background_saturation=torch.full((4,), 0.2),
    )
    panorama = torch.cat(list(render(scenes, 64)), dim=-1)
    assert judged_panoramas(panorama[None])["hue_spread"] == pytest.approx(120, abs=8)
