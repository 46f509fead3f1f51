"""A run that an earlier version began (tests/behaviour/made_before/run, commit 657e333) goes on, and is exported."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from seecoder import SeeCoder
from seecoder.cli import main as seecoder
from train.cli import main

MADE_BEFORE = Path(__file__).parents[1] / "made_before" / "run"


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """The folder of the run, after 2 of 4 steps; its configuration names everything relative to the working folder."""
    shutil.copytree(MADE_BEFORE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def test_its_own_config_continues_it_to_the_weights_of_then(run, load, capsys):
    """Compared to 1e-6: bit-equal where it was made, but processors with other vector units add in another order."""
    assert main(["fit", "--config", "run/config.yaml"]) == 0
    said = capsys.readouterr().out
    assert "continues from run/step-00000002.ckpt" in said
    assert "note: the class train.seecoder.SeeCoderStage of the configuration is train.stages.SeeCoderStage now" in said
    checkpoint = load(run / "step-00000004.ckpt")
    found = checkpoint["state_dict"] | {f"ema.{name}": value for name, value in checkpoint["ema"]["averages"].items()}
    expected = load_file(MADE_BEFORE / "weights_after_4_steps.safetensors")
    assert set(found) == set(expected)
    began = load(run / "step-00000002.ckpt")["state_dict"]
    assert max(float((expected[name] - began[name]).abs().max()) for name in began) > 1e-4
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=0, atol=1e-6), name


def test_it_is_exported(run, tmp_path):
    assert seecoder(["export", "run", "exported"]) == 0
    encoder = SeeCoder.from_pretrained(tmp_path / "exported")
    averages = torch.load(run / "step-00000002.ckpt", weights_only=True)["ema"]["averages"]
    state = encoder.state_dict()
    assert all(torch.equal(state[name.removeprefix("encoder.")], value) for name, value in averages.items())
