from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from train.settings import EmaSettings, OptimizerSettings
from train.stages.stage import Stage, read_stage_weights


class Tiny(Stage):
    """One trained layer before a frozen one."""

    frozen_names = ("frozen",)

    def __init__(self, **options: Any) -> None:
        super().__init__(OptimizerSettings(), **options)
        self.trained, self.frozen = nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2))
        self.freeze_parts()


def test_frozen_parts_have_no_gradient_stay_in_eval_mode_and_out_of_checkpoints():
    stage = Tiny().train()
    assert [name for name, _ in stage.trained_parameters()] == ["trained.weight", "trained.bias"]
    assert stage.trained.training
    assert not any(module.training for module in stage.frozen.modules())
    checkpoint: Any = {"state_dict": stage.state_dict()}
    stage.on_save_checkpoint(checkpoint)
    assert set(checkpoint["state_dict"]) == {"trained.weight", "trained.bias"}


def test_records_are_sums_and_counts_until_they_are_taken():
    stage = Tiny()
    for value in (1.0, 3.0):
        stage.record("loss", torch.tensor(value))
    assert stage.take_records() == {"loss": (4.0, 2)}
    assert stage.take_records() == {}


def test_evaluating_gives_weights_modes_and_random_state_back():
    stage = Tiny(ema=EmaSettings(decay=0.5)).train()
    stage.on_fit_start()
    before = stage.trained.weight.detach().clone()
    with torch.no_grad():
        stage.trained.weight.add_(1)
    random_state = torch.get_rng_state()
    with stage.evaluating():
        assert torch.equal(stage.trained.weight, before), "the average, which saw no update"
        assert not stage.trained.training
        assert not torch.is_grad_enabled()
        torch.rand(3)
    assert torch.equal(stage.trained.weight, before + 1)
    assert stage.trained.training
    assert torch.equal(torch.get_rng_state(), random_state)


def write_checkpoint(path: Path, **more: Any) -> Path:
    torch.save({"state_dict": {name: value + 1 for name, value in Tiny().state_dict().items()}, **more}, path)
    return path


def test_another_runs_weights_are_read_and_its_averages_before_them(tmp_path):
    average = torch.full((2, 2), 9.0)
    path = write_checkpoint(tmp_path / "a.ckpt", ema={"averages": {"trained.weight": average}})
    found = read_stage_weights(path)
    assert set(found) == set(Tiny().state_dict())
    assert torch.equal(found["trained.weight"], average)
    assert torch.equal(found["trained.bias"], torch.load(path, weights_only=True)["state_dict"]["trained.bias"])


def test_a_run_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`init_from`=.* has no complete checkpoint"):
        read_stage_weights(tmp_path)
