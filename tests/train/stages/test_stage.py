import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from seecoder.weights.safetensors_files import WeightsError
from tests.fixtures.pickles import State
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
    with pytest.raises(FileNotFoundError, match=r"holds no whole checkpoint"):
        read_stage_weights(tmp_path)
    torch.save({"model": {}}, tmp_path / "c.ckpt")
    with pytest.raises(WeightsError, match=r"c\.ckpt has no `state_dict`"):
        read_stage_weights(tmp_path / "c.ckpt")


def test_state_of_an_optimizer_that_is_not_installed_does_not_keep_weights_from_loading(tmp_path, monkeypatch):
    """As torchao keeps it; nobody has imported torchao where a run only takes the weights."""
    with monkeypatch.context() as context:
        module = ModuleType("torchao.not_installed")
        module.State = State
        context.setitem(sys.modules, "torchao", ModuleType("torchao"))
        context.setitem(sys.modules, module.__name__, module)
        context.setattr(State, "__module__", module.__name__)
        path = write_checkpoint(tmp_path / "a.ckpt", optimizer_states=[{"state": {0: State(torch.ones(2))}}])
    assert set(read_stage_weights(path)) == set(Tiny().state_dict())


def test_other_frozen_weights_and_a_source_without_state_are_said_when_a_run_goes_on(monkeypatch, capsys):
    saved, same = Tiny(), Tiny()
    same.load_state_dict(saved.state_dict())
    same.freeze_parts()
    checkpoint: Any = {"state_dict": saved.state_dict(), "loops": {"fit_loop": {}}}
    saved.on_save_checkpoint(checkpoint)
    trainer = SimpleNamespace(is_global_zero=True, fit_loop=SimpleNamespace(state_dict=dict), datamodule=object())
    monkeypatch.setattr(Tiny, "trainer", trainer)
    checkpoint["object"] = {}
    same.on_load_checkpoint(checkpoint)
    assert capsys.readouterr().out == ""
    Tiny().on_load_checkpoint(checkpoint)  # which has a frozen layer of its own
    assert "`frozen` has other weights than at the checkpoint" in capsys.readouterr().out
    checkpoint["Others"] = checkpoint.pop("object")
    same.on_load_checkpoint(checkpoint)
    said = "note: the checkpoint has no state of object; its steps count as steps of the present batch\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("name", ["trained.bias", "frozen.1.weight"])
def test_weights_that_are_not_finite_are_refused_before_the_first_step(name):
    stage = Tiny()
    stage.on_fit_start()
    stage.get_parameter(name).data.view(-1)[1] = float("nan")
    with pytest.raises(WeightsError, match=f"`{name}` must be finite"):
        stage.on_fit_start()
