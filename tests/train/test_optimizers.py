"""Optimizers of torch and of other packages, which are tested where they are installed."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from tests.behaviour.training.same_training import assert_equal
from train.optimizers import KNOWN, Several, build_optimizer, learning_rate, state_bytes, turning_points
from train.settings import OptimizerSettings

BYTES = {  # of state a weight of a matrix
    "adamw": 8,
    "adafactor": 0,
    "muon": 4,
    "adamw8bit": 2,
    "adamw8bit_torchao": 2,
    "lion": 4,
    "prodigy": 12,
    "schedule_free": 8,
}


def settings_of(name: str, **more: Any) -> OptimizerSettings:
    """Settings of an optimizer that is installed; the test is skipped for others."""
    pytest.importorskip(KNOWN[name].partition(".")[0])
    return OptimizerSettings(name=name, **more)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.Linear(16, 1))


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_optimizer_is_measured_and_learns(name: str) -> None:
    rate = {"prodigy": 1.0, "lion": 1e-3}.get(name, 1e-2)
    settings = settings_of(name, lr=rate)
    assert state_bytes(settings) == pytest.approx(BYTES[name], abs=0.05)
    model = network()
    optimizer: Any = build_optimizer(settings, model.named_parameters())
    getattr(optimizer, "train", lambda: None)()
    inputs = torch.randn(32, 4)
    losses = []
    with torch.compiler.set_stance("force_eager"):
        for _ in range(40):
            optimizer.zero_grad()
            loss = (model(inputs).squeeze(1) - inputs.sum(1)).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_muon_moves_matrices_and_adamw_the_rest() -> None:
    model = network()
    optimizer = build_optimizer(OptimizerSettings(name="muon", betas=(0.5, 0.9)), model.named_parameters())
    assert isinstance(optimizer, Several)
    muon, adamw = optimizer.optimizers
    assert [weight.shape for weight in muon.param_groups[0]["params"]] == [(16, 4), (1, 16)]
    assert len(adamw.param_groups[0]["params"]) == 4
    assert adamw.param_groups[0]["betas"] == (0.5, 0.9)
    assert muon.param_groups[0]["adjust_lr_fn"] == "match_rms_adamw"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "lions"}, "`optimizer.name`=lions cannot be imported .* Known are adamw, adafactor"),
        ({"name": "nowhere.Best"}, "`pip install nowhere` brings it"),
        ({"name": "adafactor", "betas": (0.9, 0.99)}, "`optimizer.name`=adafactor does not take .*'betas'"),
        ({"arguments": {"momentum": 0.9}}, "`optimizer.name`=adamw does not take its settings: .*'momentum'"),
    ],
)
def test_what_cannot_be_had_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_optimizer(OptimizerSettings(**changes), network().named_parameters())


def test_a_missing_package_ends_the_command_with_one_line(
    settings: Any, fit: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KNOWN, "lion", "not_installed_lion.Lion")
    for arguments in ([], ["--plan"]):
        assert fit(settings(**{"stage.init_args.optimizer.name": "lion"}), *arguments) == 2
        error = capsys.readouterr().err
        assert "`pip install not_installed_lion` brings it" in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("name", KNOWN)
def test_a_continued_training_is_that_of_one_that_was_not_stopped(
    name: str, settings: Any, fit: Callable[..., int], load: Callable[[Path], Any], tmp_path: Path
) -> None:
    settings_of(name)
    changes: dict[str, Any] = {"run.max_steps": 4, "run.evaluate_every": 1}
    changes["stage.init_args.ema"] = None if name == "schedule_free" else {"decay": 0.9}
    optimizer = {"name": name, "lr": {"prodigy": 1.0}.get(name, 1e-3), "warmup_steps": 2}
    changes |= {"stage.init_args.optimizer": optimizer, "data.init_args.held_out": 2}
    if "8bit" in name:
        changes["stage.init_args.encoder.query_ffn_dim"] = 256  # smaller weights keep a state of 32 bits
    broken = {**changes, "run.folder": str(tmp_path / "broken")}
    with torch.compiler.set_stance("force_eager"):  # torchao compiles for a minute
        assert fit(settings(**changes)) == 0
        whole = load(tmp_path / "run" / "step-00000004.ckpt")
        assert whole["optimizer_states"][0]["state"]
        assert fit(settings(**{**broken, "run.max_steps": 2})) == 0
        assert fit(settings(**broken)) == 0
    again = load(tmp_path / "broken" / "step-00000004.ckpt")
    assert_equal(whole, again)
    assert whole["optimizer_states"][0]["param_groups"] == again["optimizer_states"][0]["param_groups"]


def test_another_optimizer_is_not_continued_with(
    settings: Any, fit: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(settings(**{"run.max_steps": 2})) == 0
    assert fit(settings(**{"run.max_steps": 4, "stage.init_args.optimizer": {"name": "adafactor"}})) == 2
    error = capsys.readouterr().err
    assert "`optimizer.name`=adafactor must be adamw, as in the checkpoint" in error
    assert error.count("\n") == 1


def test_arguments_that_need_more_than_the_checkpoint_has_are_refused(
    settings: Any, fit: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(settings(**{"run.max_steps": 2})) == 0
    changed = {"stage.init_args.optimizer": {"lr": 1e-3, "arguments": {"amsgrad": True}}}
    assert fit(settings(**{"run.max_steps": 4, **changed})) == 2
    error = capsys.readouterr().err
    assert "`optimizer.arguments`={'amsgrad': True} cannot be continued with" in error
    assert "has no max_exp_avg_sq" in error
    assert error.count("\n") == 1


def test_looking_at_schedule_free_averages_changes_nothing(
    settings: Any, fit: Callable[..., int], load: Any, tmp_path: Path
) -> None:
    """Evaluations and checkpoints see the average; weights go on from where they were, to the last bit."""
    pytest.importorskip("schedulefree")
    weights = []
    for every in (1, 4):
        changes = {"stage.init_args.ema": None, "run.max_steps": 4, "run.evaluate_every": every}
        changes |= {"run.checkpoint_every": every, "run.folder": str(tmp_path / f"every-{every}")}
        changes |= {"stage.init_args.optimizer": {"name": "schedule_free", "lr": 1e-2}, "data.init_args.held_out": 2}
        assert fit(settings(**changes)) == 0
        checkpoint = load(tmp_path / f"every-{every}" / "step-00000004.ckpt")
        weights.append(checkpoint["state_dict"])
        averages = checkpoint["ema"]["averages"]
        assert set(averages) <= set(checkpoint["state_dict"])
        assert any(not torch.equal(value, checkpoint["state_dict"][name]) for name, value in averages.items())
        assert checkpoint["seecoder"]["ema"]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_schedule_free_averages_by_itself(
    settings: Any, fit: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("schedulefree")
    assert fit(settings(**{"stage.init_args.optimizer": {"name": "schedule_free"}})) == 2
    assert "must be null with `optimizer.name`=schedule_free, which averages itself" in capsys.readouterr().err


def test_arguments_come_from_the_command_line(
    settings: Any, fit: Callable[..., int], load: Any, tmp_path: Path
) -> None:
    arguments = ["--stage.init_args.optimizer.name", "torch.optim.SGD"]
    arguments += ["--stage.init_args.optimizer.arguments", json.dumps({"momentum": 0.5})]
    assert fit(settings(**{"run.max_steps": 1}), *arguments) == 0
    (group,) = load(tmp_path / "run" / "step-00000001.ckpt")["optimizer_states"][0]["param_groups"]
    assert group["momentum"] == 0.5


def test_a_plan_counts_the_state_of_the_optimizer(
    settings: Any, fit: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {}
    for name in ("adamw", "adafactor"):
        assert fit(settings(**{"stage.init_args.optimizer": {"name": name}}), "--plan") == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("disk")]
        sizes[name] = float(line.split()[1])
    assert sizes["adafactor"] == pytest.approx(sizes["adamw"] / 2, rel=0.02)  # weights and average alone


def test_a_plan_counts_muons_adamw_for_what_is_no_matrix(
    settings: Any, fit: Callable[..., int], capsys: pytest.CaptureFixture[str], load: Any, tmp_path: Path
) -> None:
    config = settings(
        **{"run.max_steps": 1, "stage.init_args.optimizer": {"name": "muon"}, "stage.init_args.ema": None}
    )
    assert fit(config, "--plan") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("disk")]
    assert fit(config) == 0
    checkpoint = load(tmp_path / "run" / "step-00000001.ckpt")
    values = [*checkpoint["state_dict"].values()]
    for state in checkpoint["optimizer_states"][0]["state"].values():
        values += [value for name, value in state.items() if name != "step"]
    assert float(line.split()[1]) == pytest.approx(sum(value.nbytes for value in values) / 2**20, abs=0.051)


def test_deepspeed_shares_out_adamw_alone(
    settings: Any, fit: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"run.strategy": "deepspeed_stage_1", "stage.init_args.optimizer": {"name": "adafactor"}}
    assert fit(settings(**changes), "--plan") == 2
    assert "must be auto or ddp with `optimizer.name`=adafactor" in capsys.readouterr().err


CONFIGS = Path(__file__).parents[2] / "configs"


def published(name: str) -> tuple[OptimizerSettings, int]:
    config = yaml.safe_load((CONFIGS / name).read_text())
    values = config["stage"]["init_args"]["optimizer"]
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return OptimizerSettings(**values), config["run"]["max_steps"]


def test_published_plan():
    settings, max_steps = published("sd15.yaml")
    assert max_steps == 100_000
    rates = [learning_rate(step, max_steps, settings) for step in (0, 49_999, 50_000, 99_999)]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5], rel=1e-12)


def test_published_position_aware_plan():
    settings, max_steps = published("sd15_position_aware.yaml")
    assert max_steps == 20_000
    assert [learning_rate(step, max_steps, settings) for step in (0, 19_999)] == [5e-5, 5e-5]


def test_warmup_rises_linearly_and_loses_no_step():
    settings = OptimizerSettings(lr=1.0, warmup_steps=4)
    assert [learning_rate(step, 10, settings) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_cosine_starts_late_and_ends_at_its_floor():
    settings = OptimizerSettings(lr=2.0, schedule="cosine", decay_start=0.5, final_factor=0.1)
    assert learning_rate(50, 100, settings) == 2.0
    assert learning_rate(75, 100, settings) == pytest.approx(2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2))))
    assert learning_rate(100, 100, settings) == pytest.approx(0.2)


def test_settings_of_the_chosen_schedule_act():
    cosine = OptimizerSettings(lr=1.0, schedule="cosine", decay_start=0.5, final_factor=0.1)
    assert [learning_rate(step, 10, cosine) for step in (5, 10)] == pytest.approx([1.0, 0.1])
    steps = OptimizerSettings(lr=1.0, schedule="steps", milestones=(5,))
    assert [learning_rate(step, 10, steps) for step in (4, 5)] == pytest.approx([1.0, 0.1])


def test_turning_points_are_where_the_rate_changes_and_within_the_run():
    settings = OptimizerSettings(lr=1e-4, warmup_steps=10, schedule="steps", milestones=(30, 200))
    assert turning_points(100, settings) == pytest.approx({0: 1e-5, 10: 1e-4, 30: 1e-5, 50: 1e-5, 99: 1e-5})
