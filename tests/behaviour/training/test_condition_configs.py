"""Every configuration that tells a base more begins with the committed base, and its data has what it is told."""

from pathlib import Path

import pytest
import torch

from train.cli import build_parser

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if "WorldConditions" in path.read_text())


def test_there_is_one_of_each_kind():
    kinds = ("inpainting", "superresolution", "layout", "class", "semantic", "text", "image")
    assert set(NAMES) == {f"world_{kind}" for kind in kinds}


@pytest.mark.heavy
@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_fits_the_base_and_its_data(name, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    parser = build_parser()
    small = ("--data.init_args.pool_size", "2", "--data.init_args.held_out", "2")
    ready = parser.instantiate(parser.parse_args(["fit", "--config", str(CONFIGS / f"{name}.yaml"), *small])).fit
    ready.data.setup("fit")
    loss = ready.stage.loss(ready.data.batch(torch.tensor([[0, 0], [0, 1]])))
    assert 0 < float(loss.detach()) < 0.6, "the base knows how to predict noise already"
