"""What a part of an encoder holds of the layout is read by regression, and nothing is read where nothing is."""

import sys

import pytest
import torch

from data.world.conditioner import ENCODERS
from scripts.evaluation import probe_place


def test_what_is_there_is_explained_and_what_is_not_is_not():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2000, 30, generator=generator)
    inputs[:, 7] = 3.0  # a dead channel
    known = inputs @ torch.randn(30, 1, generator=generator)
    half = known + known.std() * torch.randn(2000, 1, generator=generator)
    found = probe_place.explained(inputs, torch.cat([known, half, torch.randn(2000, 1, generator=generator)], dim=1))
    assert float(found[0]) > 0.999
    assert float(found[1]) == pytest.approx(0.5, abs=0.06)
    assert float(found[2]) < 0.02


@pytest.mark.heavy
def test_the_backbone_of_an_encoder_knows_the_place(monkeypatch, capsys):
    monkeypatch.setattr(probe_place, "WIDTH", 200)
    monkeypatch.setattr(sys, "argv", ["probe_place.py", str(ENCODERS / "position_aware"), "--count", "600"])
    probe_place.main()
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    found = {row[0].strip(): [float(value) for value in row[1:]] for row in rows[2:]}
    assert next(iter(found)) == "backbone, level 0"
    assert list(found)[-1] == "context"
    assert found["backbone, level 0"][1] > 0.9
    assert all(name in found for name in ("decoder, level 2", "block 2, what is read", "block 2"))
