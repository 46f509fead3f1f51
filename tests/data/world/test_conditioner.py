from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.world.conditioner import BASE, ENCODERS, TOKENS, WorldConditioner, load_conditioner
from data.world.scenes import sample_scenes


def test_dropped_tokens_are_zero_and_the_rest_stays():
    torch.manual_seed(0)
    conditioner, scenes = WorldConditioner(context_dim=32), sample_scenes(3, seed=0)
    full = conditioner(scenes)
    keep = torch.ones(3, len(TOKENS), dtype=torch.bool)
    keep[1, 2] = False
    partial = conditioner(scenes, keep)
    assert full.shape == (3, 5, 32)
    assert (partial[1, 2] == 0).all()
    keep_all = keep.unsqueeze(-1).expand_as(full)
    assert torch.equal(partial[keep_all], full[keep_all])


def test_each_token_sees_its_own_attribute_only():
    torch.manual_seed(0)
    conditioner, scenes = WorldConditioner(context_dim=32), sample_scenes(1, seed=0)
    changed = conditioner(replace(scenes, hue=(scenes.hue + 1) % 8)) != conditioner(scenes)
    assert changed.any(-1).tolist() == [[False, True, False, False, False]]
    moved = conditioner(replace(scenes, center_x=scenes.center_x + 0.05)) != conditioner(scenes)
    assert moved.any(-1).tolist() == [[False, False, False, False, True]]


def test_round_trip(tmp_path):
    conditioner, scenes = WorldConditioner(context_dim=32), sample_scenes(2, seed=0)
    conditioner.save_pretrained(tmp_path)
    again = WorldConditioner.from_pretrained(tmp_path)
    assert torch.equal(again(scenes), conditioner(scenes))


def test_lower_octaves_tell_places_outside_the_frame_from_those_inside():
    # With a period of two frames an object at -1.5 is one at 0.5.
    scenes = sample_scenes(1, seed=0)
    near, far = (replace(scenes, center_y=torch.tensor([place])) for place in (0.5, -1.5))
    plain = WorldConditioner(context_dim=32)
    wide = WorldConditioner(context_dim=32, layout_frequencies=6, lowest_octave=-2)
    assert torch.allclose(plain(near), plain(far), atol=1e-4)
    assert float((wide(near) - wide(far)).detach().abs().max()) > 0.05
    assert torch.allclose(torch.as_tensor(wide.octaves)[2:], torch.as_tensor(plain.octaves))


def test_the_conditioner_is_ready_to_use():
    conditioner = load_conditioner()
    assert not conditioner.training
    assert {weight.dtype for weight in conditioner.parameters()} == {torch.float32}
    assert conditioner(sample_scenes(2, 0)).shape == (2, 5, conditioner.config["context_dim"])


def test_the_weights_are_where_they_are_said_to_be():
    assert (BASE / "model_index.json").is_file()
    assert {"plain", "position_aware"} <= {path.name for path in ENCODERS.iterdir()}


def test_another_base_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="not a base of the world"):
        load_conditioner(tmp_path)
