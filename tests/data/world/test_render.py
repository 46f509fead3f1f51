import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from data.world.reader.segmentation import chroma
from data.world.render import SIGNED_DISTANCES, compose, render, segment
from data.world.scenes import sample_scenes


def test_a_picture_does_not_depend_on_its_batch():
    scenes = sample_scenes(200, seed=1)
    assert torch.equal(render(scenes, 64)[137], render(scenes[137], 64)[0])


def test_any_resolution_shows_the_same_scene():
    # A picture at 256 pixels, averaged down, is the picture at 64: same places, same colours.
    scenes = sample_scenes(24, seed=2)
    small = render(scenes, 64)
    averaged = torch.nn.functional.avg_pool2d(render(scenes, 256), 4)
    assert (small - averaged).abs().mean() < 0.004
    assert (small - averaged).square().mean() < 3e-4


def test_higher_resolution_is_sharper_than_an_upscale():
    scenes = sample_scenes(24, seed=2)
    large = render(scenes, 256)
    upscaled = torch.nn.functional.interpolate(render(scenes, 64), scale_factor=4, mode="bicubic")

    def steepest(pictures):
        return pictures.diff(dim=-1).abs().amax(dim=(1, 2, 3)).mean()

    assert steepest(large) > 2 * steepest(upscaled)


def test_a_window_is_that_part_of_a_larger_picture():
    # A quarter of the frame at 64 pixels has the pixels of the frame at 256: the same places, the same sharp edges.
    scenes = sample_scenes(3, seed=2)
    whole = render(scenes, 256)
    windows = torch.tensor([[0.25, 0.5, 0.25], [0.5, 0.25, 0.25], [0.25, 0.25, 0.25]])
    parts = render(scenes, 64, windows=windows)
    expected = [whole[0, :, 64:128, 128:192], whole[1, :, 128:192, 64:128], whole[2, :, 64:128, 64:128]]
    assert torch.allclose(parts, torch.stack(expected), atol=2e-3)
    assert torch.equal(render(scenes, 64, windows=torch.tensor([[0.0, 0.0, 1.0]] * 3)), render(scenes, 64))


def test_segments_say_what_each_pixel_is():
    scenes = replace(sample_scenes(6, 3), texture=torch.zeros(6, dtype=torch.long))
    windows = torch.tensor([[0.2, 0.3, 0.5]]).expand(6, 3)
    for part, pixels in ((None, render(scenes, 64)), (windows, render(scenes, 64, windows=windows))):
        sky, ground, covered = segment(scenes, 64, part).unbind(1)
        torch.testing.assert_close(sky + ground + covered, torch.ones(6, 64, 64))
        chroma = pixels.amax(1) - pixels.amin(1)
        assert bool((chroma[covered == 1] > 0.5).all())
        assert bool((chroma[covered == 0] < 0.4).all())
        value = pixels.amax(1)
        assert float(value[sky == 1].min()) > float(value[ground == 1].max())


def test_wide_pictures_keep_the_proportions():
    scenes = sample_scenes(8, seed=4)
    wide = render(scenes, 64, 128)
    assert wide.shape == (8, 3, 64, 128)
    assert torch.allclose(wide[:, :, :, 32:96], render(scenes, 64), atol=1e-4)


def test_object_and_background_are_told_apart_by_saturation():
    scenes = sample_scenes(300, seed=6)
    pictures = render(scenes, 64).numpy()
    outside = render(replace(scenes, center_x=torch.full((300,), 5.0)), 64).numpy()
    assert max(chroma(picture).max() for picture in outside) < 0.27
    assert min(chroma(picture).max() for picture in pictures) > 0.6


def test_outlined_pictures_have_flat_grounds_and_a_dark_line_around_the_same_object():
    scenes = replace(sample_scenes(12, seed=3), center_y=torch.full((12,), 0.6))
    outlined, shaded = render(scenes, 64, style="outlined"), render(scenes, 64)
    assert float(outlined[:, :, 0].std(-1).max()) < 1e-6 < float(shaded[:, :, 0].std(-1).min())  # a row of the sky
    is_ink = outlined.amax(1) < 0.24
    assert not bool((shaded.amax(1) < 0.24).any())
    assert bool((is_ink.flatten(1).float().mean(1) > 0.03).all())
    inside = torch.from_numpy(np.stack([chroma(picture) for picture in shaded.numpy()])) > 0.6
    assert float((outlined - shaded).abs().amax(1)[inside].median()) == 0  # all but the object's edge


def test_compose_places_every_object():
    objects = replace(
        sample_scenes(2, seed=9),
        radius=torch.tensor([0.12, 0.12]),
        center_x=torch.tensor([0.25, 0.75]),
        center_y=torch.tensor([0.5, 0.5]),
    )
    picture = compose(sample_scenes(1, seed=1), objects, 128).numpy()
    saturated = chroma(picture) > 0.3
    assert saturated[:, :64].any()
    assert saturated[:, 64:].any()
    assert not saturated[:, 60:68].any()


def test_too_small_a_picture_is_refused():
    with pytest.raises(ValueError, match="`height`=4"):
        render(sample_scenes(1, seed=0), 4)


def test_drawing_is_fast_enough_for_training():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        scenes = sample_scenes(512, seed=0)
        render(scenes[:64], 64)
        start = time.process_time()
        render(scenes, 64)
        seconds = time.process_time() - start
    finally:
        torch.set_num_threads(threads)
    assert 512 / seconds > 500


@pytest.mark.parametrize("name", list(SIGNED_DISTANCES))
def test_signed_distance_is_a_distance(name):
    # Gradient length 1 near the outline, 1-Lipschitz everywhere, negative inside, positive far away.
    axis = torch.linspace(-1.5, 1.5, 301, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    distance = SIGNED_DISTANCES[name](y, x)
    assert max(distance.diff(dim=0).abs().max(), distance.diff(dim=1).abs().max()) < 0.01 * (1 + 1e-6)
    assert (distance[1:, 1:] - distance[:-1, :-1]).abs().max() < 0.01 * 2**0.5 * (1 + 1e-6)
    down, across = torch.gradient(distance, spacing=0.01)
    slope = torch.hypot(down, across)
    near = distance.abs() < 0.1
    assert slope[near].median() == pytest.approx(1, abs=1e-2)
    inside = distance < 0
    area = inside.double().mean() * 9
    assert 1.6 < area < 3.2
    assert torch.hypot(y, x)[inside].max() < 1.14
