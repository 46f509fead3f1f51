from dataclasses import replace

import numpy as np
import pytest
import torch

from data.world.scenes import (
    BACKGROUNDS,
    HUES,
    LAYOUT,
    SHAPES,
    TEXTURES,
    joined,
    move_scenes,
    sample_scenes,
    sample_windows,
    seen_through,
    uniform,
)


def test_a_scene_is_a_pure_function_of_seed_and_number():
    whole = sample_scenes(50, seed=3)
    part = sample_scenes(7, seed=3, start=20)
    for name in vars(whole):
        assert torch.equal(getattr(whole, name)[20:27], getattr(part, name)), name


def test_seeds_give_other_scenes():
    first, second = sample_scenes(1000, seed=0), sample_scenes(1000, seed=1)
    assert (first.center_x == second.center_x).sum() == 0
    assert (first.shape == second.shape).float().mean() == pytest.approx(1 / len(SHAPES), abs=0.05)


def test_attributes_are_uniform_and_independent():
    scenes = sample_scenes(20_000, seed=5)
    for name, names in (("shape", SHAPES), ("hue", HUES), ("texture", TEXTURES), ("background", BACKGROUNDS)):
        share = torch.bincount(getattr(scenes, name), minlength=len(names)) / len(scenes)
        assert (share - 1 / len(names)).abs().max() < 0.012, name
    numbers = torch.stack([scenes.shape.float(), scenes.hue.float(), scenes.center_x, scenes.center_y, scenes.radius])
    off_diagonal = torch.corrcoef(numbers) - torch.eye(len(numbers))
    assert off_diagonal.abs().max() < 0.03


def test_objects_lie_inside_the_frame():
    scenes = sample_scenes(5000, seed=2)
    reach = 1.13 * scenes.radius
    for center in (scenes.center_y, scenes.center_x):
        assert (center - reach).min() > 0
        assert (center + reach).max() < 1


def test_selection_and_description():
    scenes = sample_scenes(4, seed=0)
    assert len(scenes[1]) == 1
    assert len(scenes[-1]) == 1
    assert torch.equal(scenes[-1].shape, scenes.shape[3:])
    assert scenes[torch.tensor([2, 0])].describe(0) == scenes.describe(2)
    assert [len(part) for part in scenes.split(3)] == [3, 1]


def test_joined_scenes_are_those_of_the_parts_in_order():
    scenes = sample_scenes(5, 0)
    both = joined([scenes[:2], scenes[2:]])
    assert all(torch.equal(value, vars(scenes)[name]) for name, value in vars(both).items())


def test_windows_lie_within_the_frame_and_have_all_sizes():
    top, left, side = sample_windows(4000, seed=1).unbind(1)
    for first in (top, left):
        assert float(first.min()) >= 0
        assert float((first + side).max()) <= 1 + 1e-6
    assert 0.25 <= float(side.min()) < 0.26
    assert 0.99 < float(side.max()) <= 1
    assert float(side.log2().mean()) == pytest.approx(-1, abs=0.03)  # log-uniform between 1/4 and 1
    assert torch.equal(sample_windows(10, seed=1), sample_windows(4000, seed=1)[:10])


def test_the_layout_through_a_window_is_where_the_object_is_in_it():
    scenes = replace(sample_scenes(2, seed=0), center_y=torch.tensor([0.5, 0.5]), center_x=torch.tensor([0.4, 0.6]))
    seen = seen_through(scenes, torch.tensor([[0.25, 0.4, 0.5], [0.0, 0.0, 0.25]]))
    assert seen.center_y.tolist() == pytest.approx([0.5, 2.0])
    assert seen.center_x.tolist() == pytest.approx([0.0, 2.4])
    assert torch.equal(seen.radius, scenes.radius * torch.tensor([2.0, 4.0]))
    assert torch.equal(seen.hue, scenes.hue)


def test_moved_scenes_have_other_places_that_the_first_ones_do_not_tell():
    scenes = sample_scenes(5000, seed=4)
    moved = move_scenes(scenes, seed=4)
    for name in vars(scenes):
        assert torch.equal(getattr(scenes, name), getattr(moved, name)) == (name not in LAYOUT), name
    for name in LAYOUT:
        pair = torch.stack([getattr(scenes, name), getattr(moved, name)])
        assert abs(torch.corrcoef(pair)[0, 1]) < 0.05, name
        assert (pair[0].min() - pair[1].min()).abs() < 1e-3, name
    part = move_scenes(sample_scenes(3, 4, start=20), seed=4, start=20)
    assert torch.equal(part.center_x, moved.center_x[20:23])


def test_negative_count_is_refused():
    with pytest.raises(ValueError, match="`count`=-1"):
        sample_scenes(-1, seed=0)


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
