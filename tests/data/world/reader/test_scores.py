"""Rates over pictures, and scores of one."""

import json

import torch

from data.world.reader.readings import read
from data.world.reader.scores import rates, score
from data.world.render import render
from data.world.scenes import sample_scenes


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
