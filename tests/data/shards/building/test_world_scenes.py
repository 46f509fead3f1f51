"""Scenes of the world as a source of samples."""

import io
import json
import pickle

import pytest
import torch
from PIL import Image

from data.shards.building.world_scenes import WorldScenes
from data.world.render import render
from data.world.scenes import move_scenes, sample_scenes
from seecoder.images.saving import to_pil


def test_a_sample_is_the_drawn_scene_with_its_attributes():
    items = list(WorldScenes(10, seed=3, size=16, start=100).samples(2, 5))
    scenes = sample_scenes(3, 3, start=102)
    for row, (item, pixels) in enumerate(zip(items, render(scenes, 16), strict=True)):
        assert (item.name, item.key, item.reason) == (f"scene {102 + row}", f"000000{102 + row}", "")
        with Image.open(io.BytesIO(item.members["png"])) as image:
            assert image.tobytes() == to_pil(pixels).tobytes()
        about = json.loads(item.members["json"])
        assert about == scenes.describe(row) | {"seed": 3, "number": 102 + row, "size": 16}
        assert torch.equal(sample_scenes(1, about["seed"], about["number"]).radius, scenes[row].radius)


def test_a_copy_makes_the_same_samples():
    source = WorldScenes(4, seed=1, size=8)
    assert list(pickle.loads(pickle.dumps(source)).samples(0, 4)) == list(source.samples(0, 4))
    assert len(source) == 4


@pytest.mark.parametrize(("name", "value"), [("count", 0), ("start", -1), ("size", 7)])
def test_numbers_out_of_range_are_refused(name: str, value: int):
    with pytest.raises(ValueError, match=f"`{name}`={value} of WorldScenes"):
        WorldScenes(**({"count": 1, "seed": 0, "size": 8} | {name: value}))


def test_a_pair_is_a_scene_and_the_same_moved():
    source = WorldScenes(5, seed=3, size=16, start=7, pairs="moved")
    scenes = sample_scenes(5, 3, start=7)
    moved = move_scenes(scenes, 3, start=7)
    for row, item in enumerate(source.samples(0, 5)):
        assert set(item.members) == set(source.members)
        for kind, which in (("reference.png", scenes), ("png", moved)):
            with Image.open(io.BytesIO(item.members[kind])) as image:
                assert image.tobytes() == to_pil(render(which[row], 16)[0]).tobytes()
        about = json.loads(item.members["json"])
        assert about["reference"] == scenes.describe(row)
        about.pop("reference")
        assert about == moved.describe(row) | {"seed": 3, "number": 7 + row, "size": 16}
    with pytest.raises(ValueError, match="`pairs`='turned' of WorldScenes"):
        WorldScenes(1, seed=0, size=8, pairs="turned")


def test_settings_of_scenes_without_pairs_are_those_of_earlier_builds():
    assert WorldScenes(2, seed=1, size=8).settings == {"kind": "world", "count": 2, "seed": 1, "size": 8, "start": 0}
    assert WorldScenes(2, seed=1, size=8, pairs="moved").settings["pairs"] == "moved"
