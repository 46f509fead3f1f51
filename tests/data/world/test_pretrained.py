"""The committed base of the world."""

from pathlib import Path

import pytest
import torch

from data.world.pretrained import BASE, ENCODERS, load_conditioner
from data.world.scenes import sample_scenes


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
