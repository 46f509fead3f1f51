import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from data.world.reader.readings import agreement, rates, read, score
from data.world.render import compose, render
from data.world.scenes import ATTRIBUTES, Scenes, sample_scenes

NAMES = ("shape", "hue", "texture", "background")


def truth(scenes: Scenes) -> dict[str, torch.Tensor]:
    return {name: getattr(scenes, name) for name in NAMES}


@pytest.mark.heavy
@pytest.mark.parametrize(("side", "count"), [(64, 600), (128, 150), (256, 60), (512, 24)])
def test_true_renderings_are_read_right(side, count):
    # scripts/evaluation/check_reader.py reads the full 2,000 a size; this is what a test can afford.
    scenes = sample_scenes(count, seed=1000 + side)
    readings = read(picture for part in scenes.split(50) for picture in render(part, side))
    right = {name: values.mean() for name, values in agreement(readings, truth(scenes)).items()}
    assert right["count"] >= 0.995
    assert right["hue"] >= 0.995
    assert right["shape"] >= 0.99
    assert right["texture"] >= 0.98
    assert right["background"] >= 0.99
    assert np.mean([reading.num_horizons for reading in readings]) == pytest.approx(1, abs=0.02)
    assert sum(reading.num_specks for reading in readings) == 0


@pytest.mark.heavy
def test_reading_a_shuffled_truth_falls_to_chance():
    scenes = sample_scenes(600, seed=8)
    right = agreement(read(render(scenes, 64)), truth(scenes[torch.randperm(600, generator=torch.manual_seed(0))]))
    assert right["shape"].mean() == pytest.approx(1 / 6, abs=0.05)
    assert right["hue"].mean() == pytest.approx(1 / 8, abs=0.05)
    assert right["texture"].mean() == pytest.approx(1 / 3, abs=0.06)


def native_copies(count: int, side: int, rng: np.random.Generator) -> Scenes | None:
    """Objects of native size (as a sampler repeats them) scattered over a larger picture without touching."""
    scenes = sample_scenes(count, seed=int(rng.integers(1 << 30)))
    radius = scenes.radius * 64 / side
    places: list[tuple[float, float, float]] = []
    for r in radius.tolist():
        for _ in range(1000):
            y, x = rng.uniform(1.15 * r, 1 - 1.15 * r, 2)
            if all(np.hypot(y - b, x - a) > 1.13 * (r + q) + 4 / side for b, a, q in places):
                places.append((y, x, r))
                break
        else:
            return None
    center = torch.tensor(places).view(-1, 3).float()
    return replace(scenes, radius=radius, center_y=center[:, 0], center_x=center[:, 1])


@pytest.mark.parametrize(("side", "most"), [(128, 4), (192, 9), (256, 9)])
def test_objects_that_do_not_touch_are_counted(side, most):
    rng = np.random.default_rng(side)
    exact = total = 0
    while total < 40:
        objects = native_copies(int(rng.integers(0, most + 1)), side, rng)
        if objects is None:
            continue
        picture = compose(sample_scenes(1, seed=int(rng.integers(1 << 30))), objects, side)
        exact += read([picture])[0].num_objects == len(objects)
        total += 1
    assert exact / total >= 0.95


def test_touching_objects_of_different_hue_are_two():
    two = replace(
        sample_scenes(2, seed=0),
        shape=torch.tensor([1, 1]),
        texture=torch.tensor([0, 0]),
        hue=torch.tensor([0, 5]),
        hue_degrees=torch.tensor([0.0, 225.0]),
        radius=torch.tensor([0.15, 0.15]),
        rotation=torch.zeros(2),
        center_x=torch.tensor([0.40, 0.62]),
        center_y=torch.tensor([0.5, 0.5]),
    )
    reading = read([compose(sample_scenes(1, seed=3), two, 128)])[0]
    assert reading.num_objects == 2
    assert sorted(item.hue for item in reading.objects) == [0, 5]


def test_specks_are_not_objects():
    speck = replace(sample_scenes(1, seed=0), radius=torch.tensor([0.03]), texture=torch.tensor([0]))
    big = replace(sample_scenes(1, seed=4), center_x=torch.tensor([0.3]), radius=torch.tensor([0.2]))
    apart = replace(speck, center_x=torch.tensor([0.85]), center_y=torch.tensor([0.2]), shape=torch.tensor([0]))
    both = Scenes(**{name: torch.cat([getattr(big, name), getattr(apart, name)]) for name in vars(big)})
    reading = read([compose(sample_scenes(1, seed=1), both, 64)])[0]
    assert reading.num_objects == 1
    assert reading.num_specks == 1


def test_a_copy_of_native_size_counts_as_an_object_in_a_large_picture():
    scene = sample_scenes(1, seed=2)
    small = replace(scene, radius=torch.tensor([0.05]), texture=torch.tensor([0]), shape=torch.tensor([1]))
    reading = read([compose(scene, small, 256)])[0]
    assert reading.num_objects == 1


def test_an_empty_background_has_no_object():
    reading = read(render(replace(sample_scenes(1, seed=1), center_x=torch.tensor([5.0])), 64))[0]
    assert reading.num_objects == reading.num_specks == 0
    assert reading.main is None


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_flat_pictures_do_not_crash(value):
    reading = read(torch.full((1, 3, 64, 64), value))[0]
    assert reading.num_objects == 0
    assert reading.num_horizons == 0


def test_a_picture_full_of_object_does_not_crash():
    picture = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1).expand(3, 64, 64)
    assert read([picture])[0].num_objects == 1


def test_bad_pictures_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        read(torch.full((1, 3, 64, 64), float("nan")))
    with pytest.raises(ValueError, match="shape"):
        read(torch.zeros(1, 1, 64, 64))


@pytest.mark.parametrize("side", [64, 128])
def test_either_style_is_read_alike_and_told_from_the_other(side):
    scenes = sample_scenes(60, seed=8)
    for style, bounds in (("shaded", (0.0, 0.0)), ("outlined", (0.8, 1.0))):
        readings = read(render(scenes, side, style=style))
        right = agreement(readings, {name: getattr(scenes, name) for name in ATTRIBUTES})
        assert right["all"].all(), style
        assert all(bounds[0] <= reading.outline <= bounds[1] for reading in readings), style
        assert all(0.9 < reading.num_horizons < 1.1 for reading in readings), style


def test_true_renderings_are_right_and_those_of_other_scenes_are_not():
    scenes = sample_scenes(12, seed=1)
    readings = read(render(scenes, 64))
    found = rates(readings, scenes)
    assert [found[name] for name in ("count", "shape", "hue", "texture", "background", "all")] == [1.0] * 6
    rolled = rates(readings, scenes[torch.arange(12).roll(5)])
    assert rolled["count"] == 1.0
    assert rolled["all"] < 0.5


def test_a_picture_is_scored_by_what_is_written_beside_it_or_its_input(tmp_path):
    scenes = sample_scenes(1, seed=1)
    (pixels,) = render(scenes, 64)
    named = scenes.describe(0)
    (tmp_path / "input.json").write_text(json.dumps(named))
    paths = [tmp_path / "made.png", tmp_path / "input.png"]
    assert score(pixels, paths) == rates(read([pixels]), scenes)
    other = next(hue for hue in ("red", "blue") if hue != named["hue"])
    (tmp_path / "made.json").write_text(json.dumps(named | {"hue": other}))
    wrong = score(pixels, paths)
    assert (wrong["hue"], wrong["all"], wrong["shape"], wrong["count"]) == (0.0, 0.0, 1.0, 1.0)


def test_without_attributes_objects_are_counted(tmp_path):
    (tmp_path / "x.json").write_text('{"hue": ["red"], "shape": {}}')
    for name in ("x.png", "y.png"):
        found = score(torch.full((3, 64, 64), 0.5), [tmp_path / name])
        assert (found["count"], found["objects"]) == (0.0, 0.0)
        assert set(found) == {"count", "objects", "specks", "horizons"}
