import math

import pytest

from train.optimizers import learning_rate
from train.settings import GuardSettings, OptimizerSettings, RunSettings

IMPOSSIBLE = [
    {"lr": -1.0},
    {"lr": math.nan},
    {"lr": math.inf},
    {"betas": (0.9, 1.0)},
    {"betas": (-0.1, 0.9)},
    {"eps": -1e-8},
    {"weight_decay": -0.1},
    {"warmup_steps": -1},
    {"decay_start": 2.0},
    {"decay_start": 1.0},
    {"decay_start": -0.1},
    {"final_factor": -0.1},
    {"final_factor": 1.5},
    {"milestones": (5, 5)},
    {"milestones": (7, 5)},
    {"milestones": (-5, 5)},
    {"milestones": (0,)},
    {"gamma": -0.1},
    {"gamma": math.nan},
    {"clip_norm": 0.0},
    {"clip_norm": math.nan},
    {"decay_start": 0.5, "schedule": "steps", "milestones": (5,)},
    {"final_factor": 0.1, "schedule": "constant"},
    {"milestones": (5,), "schedule": "cosine"},
    {"milestones": (), "schedule": "steps"},
]


@pytest.mark.parametrize("values", IMPOSSIBLE, ids=str)
def test_impossible_settings_are_refused(values):
    name = next(iter(values))
    with pytest.raises(ValueError, match=f"^`{name}`=.* must be "):
        OptimizerSettings(**values)


@pytest.mark.parametrize("name", ["max_norm_ratio", "max_loss_ratio"])
@pytest.mark.parametrize("value", [-5.0, 0.0, 1.0, math.nan])
def test_ratios_that_would_skip_every_other_step_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}`=.*above 1"):
        GuardSettings(**{name: value})


def test_what_a_run_does_not_reach_is_said():
    """Ten steps, 0 to 9: the last may be the first at full rate, or at a milestone's."""
    run = RunSettings("x", 10, keep_steps=(1, 10))
    steps = OptimizerSettings(lr=1.0, warmup_steps=10, schedule="steps", milestones=(1, 9), gamma=0.5)
    assert learning_rate(9, 10, steps) == 0.25
    assert learning_rate(9, 10, OptimizerSettings(lr=1.0, warmup_steps=10)) == 1.0
    assert list(run.unreached_steps(steps, 9)) == []
    late = OptimizerSettings(warmup_steps=11, schedule="steps", milestones=(1, 10, 12))
    said = list(RunSettings("x", 10, keep_steps=(1, 11)).unreached_steps(late, 10))
    for line, word in zip(
        said, ("warmup_steps`=11", "milestones`=[10, 12]", "keep_steps`=[11]", "start_step`=[10]"), strict=True
    ):
        assert word in line
        assert "`run.max_steps`=10" in line


SHORT = [
    (["--stage.init_args.optimizer.warmup_steps", "7"], "`warmup_steps`=7 are more than `run.max_steps`=2"),
    (
        [f"--stage.init_args.optimizer.{setting}" for setting in ("schedule=steps", "milestones=[1, 2]")],
        "`milestones`=[2] will not be reached",
    ),
    (["--run.keep_steps", "[2, 7]"], "`run.keep_steps`=[7] will not be reached"),
]


@pytest.mark.heavy
@pytest.mark.parametrize(("arguments", "said"), SHORT, ids=[" ".join(arguments) for arguments, _ in SHORT])
def test_a_short_trial_of_a_long_plan_is_run_and_says_so(settings, fit, capsys, arguments, said):
    short = ["--run.max_steps", "2", "--stage.init_args.optimizer.warmup_steps", "1"]
    assert fit(settings(), *short, *arguments, "--plan") == 0
    (note,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note ")]
    assert said in note
    assert fit(settings(), *short, *arguments) == 0
    (note,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert said in note


WRONG = [
    (["--stage.init_args.optimizer.milestones", "[3]"], ["`milestones`=(3,)", "`schedule`=steps"]),
    (["--stage.init_args.guard.max_norm_ratio", "-5"], ["`max_norm_ratio`=-5"]),
    (["--stage.init_args.ema.decay", "2"], ["`decay`=2"]),
    (["--run.keep_steps", "[0]"], ["`keep_steps`=(0,)"]),
    (["--run.max_minutes", "-1"], ["`max_minutes`=-1"]),
    (["--stage.init_args.optimizer.decay_start", "1"], ["`decay_start`=1", "from 0 to below 1"]),
    (["--stage.init_args.optimizer.warmup_steps", "-2"], ["`warmup_steps`=-2"]),
    (["--stage.init_args.optimizer.betas", "[0.9, 1.5]"], ["`betas`=(0.9, 1.5)"]),
]


@pytest.mark.parametrize(("arguments", "named"), WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_impossible_settings_are_refused_before_anything_is_loaded(
    settings, fit, capsys, monkeypatch, tmp_path, arguments, named
):
    def refuse(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr("train.stages.seecoder.load_frozen", refuse)
    for more in ([], ["--plan"]):
        assert fit(settings(), *arguments, *more) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert all(word in line for word in named), line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("folder", ["~/runs/a", "$HOME/runs", "${oc.env:HOME}/runs", "", "  "])
def test_a_folder_that_only_a_shell_would_find_is_refused_rather_than_made(folder):
    with pytest.raises(ValueError, match=r"^`folder`=.* must be a path"):
        RunSettings(folder, 1)
