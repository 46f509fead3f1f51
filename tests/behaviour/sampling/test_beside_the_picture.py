import pytest

from tests.behaviour.sampling import beside_the_picture
from tests.behaviour.sampling.beside_the_picture import World


@pytest.mark.heavy
def test_coarse_blocks_carry_shape_and_place_and_fine_ones_hue_and_background(monkeypatch):
    monkeypatch.setattr(beside_the_picture, "COUNT", 16)
    monkeypatch.setattr(beside_the_picture, "STEPS", 10)
    world = World()
    layout = world.counts(world.context, world.scenes, context_scale="layout")
    style = world.counts(world.context, world.scenes, context_scale="style")
    assert style["hue"] >= 0.8 > 0.5 > layout["hue"]
    assert style["background"] >= 0.8 > 0.5 > layout["background"]
    assert layout["shape"] > 2 / 6  # twice what chance gives with six shapes
    assert layout["corr_center_x"] > 0.6 > 0.4 > style["corr_center_x"]  # the place is the coarse blocks' alone


@pytest.mark.heavy
def test_a_mask_keeps_the_object_and_leaves_the_background_out(monkeypatch):
    monkeypatch.setattr(beside_the_picture, "COUNT", 16)
    monkeypatch.setattr(beside_the_picture, "STEPS", 10)
    rows = beside_the_picture.masks(World("plain"))
    assert rows["the object"]["hue"] >= 0.8
    assert rows["the object"]["shape"] >= 0.6
    assert rows["the object"]["background"] <= 0.5
    assert rows["two scenes, the left one"]["hue"] > rows["two scenes, no mask"]["hue"]
