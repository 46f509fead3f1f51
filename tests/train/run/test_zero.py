"""DeepSpeed's ZeRO trains, saves and continues as DDP does; on CPUs, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import train.settings
from seecoder.cli import main as seecoder
from tests.behaviour.training.same_training import KEPT, flat
from train.cli import main
from train.estimate.costs import Costs
from train.estimate.hardware import CountedRun, Hardware, trained_bytes
from train.settings import RunSettings

ROOT = Path(__file__).parents[3]
STAGES = ("deepspeed_stage_1", "deepspeed_stage_2")

# Fits one configuration after the other; spoils losses or sends a signal at a step, as the environment says.
DRIVER = """
import json, os, signal, sys
from tests.fixtures.cpu_zero import train_on_cpus
from train.cli import main
from train.stages.seecoder import SeeCoderStage

train_on_cpus()
original = SeeCoderStage.loss
event = json.loads(os.environ.get("EVENT", "{}"))

def loss(stage, batch):
    found = original(stage, batch)
    if (event.get("rank"), event.get("step")) == (stage.global_rank, stage.global_step):
        if event["kind"] == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            return found * float("nan") if event["kind"] == "nan" else found + float("inf")
    return found

SeeCoderStage.loss = loss
sys.exit(max(main(["fit", "--config", config]) for config in sys.argv[1:]))
"""


@pytest.fixture
def run(tmp_path):
    """Fit configurations, one after the other in one process, or one in as many as it says."""
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)

    def start(*configs: dict, **event) -> int:
        paths = []
        for number, config in enumerate(configs):
            paths.append(tmp_path / f"config-{number}.yaml")
            paths[-1].write_text(yaml.safe_dump(config))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        done = subprocess.run(
            [sys.executable, str(driver), *map(str, paths)],
            cwd=ROOT,
            env={**environment, "EVENT": json.dumps(event)},
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
        )
        if done.returncode not in (0, 143):
            pytest.fail(done.stdout[-1000:] + done.stderr[-3000:])
        return done.returncode

    return start


@pytest.fixture
def named(settings, tmp_path):
    """A configuration that writes into a folder of this name, with the strategy given."""

    def make(name: str, strategy: str = "auto", steps: int = 2, **changes):
        plain = {"run.threads": 1, "data.init_args.held_out": 0, "data.init_args.held_out_world": False}
        own = {"run.folder": str(tmp_path / name), "run.strategy": strategy, "run.max_steps": steps}
        return settings(**{**plain, **own, **changes})

    return make


@pytest.fixture
def difference(load, tmp_path):
    """Largest difference of anything between the last checkpoints of two runs."""

    def measure(first: str, second: str, dtypes: bool = True) -> float:
        found = []
        for name in (first, second):
            *_, path = sorted((tmp_path / name).glob("step-*.ckpt"))
            checkpoint = load(path)
            found.append(flat({key: checkpoint[key] for key in KEPT}))
        ours, theirs = found
        assert ours.keys() == theirs.keys()
        worst = 0.0
        for name, value in ours.items():
            other = theirs[name]
            if isinstance(value, torch.Tensor):
                assert value.shape == other.shape, name
                assert value.dtype == other.dtype or not dtypes, name
                worst = max(worst, float((value.double() - other.double()).abs().max()))
            else:
                assert value == (pytest.approx(other, rel=1e-5) if isinstance(value, float) else other), name
        return worst

    return measure


@pytest.fixture
def export_difference(tmp_path):
    """Largest difference of the weights that `seecoder export` makes of two runs."""
    from safetensors.torch import load_file

    def measure(first: str, second: str) -> float:
        found = []
        for name in (first, second):
            assert seecoder(["export", str(tmp_path / name), str(tmp_path / f"{name}-export")]) == 0
            (file,) = (tmp_path / f"{name}-export").glob("*.safetensors")
            found.append(load_file(file))
        assert found[0].keys() == found[1].keys()
        return max(float((value - found[1][name]).abs().max()) for name, value in found[0].items())

    return measure


@pytest.mark.heavy
def test_one_process_trains_saves_and_continues_as_without_deepspeed(named, run, difference, export_difference):
    one, two = STAGES
    mixed = {
        "run.precision": "bf16-mixed",
        "run.accumulate": 2,
        "stage.init_args.frozen_dtype": "bfloat16",
        "stage.init_args.optimizer": {"lr": 1e-3, "clip_norm": 0.01},
    }
    same = {"data.init_args.held_out": 4, "stage.init_args.optimizer.warmup_steps": 1}  # the first run has one step
    code = run(
        named("plain", steps=3, **same),
        named("changing", one, steps=1, **same),
        named("changing", "auto", steps=2, **same),
        named("changing", two, steps=3, **same),
        named("mixed", **mixed),
        named("mixed-1", one, **mixed),
        named("mixed-2", two, **mixed),
    )
    assert code == 0
    assert difference("plain", "changing") < 1e-6
    assert export_difference("plain", "changing") < 1e-6
    assert difference("mixed", "mixed-1") < 1e-6
    assert difference("mixed", "mixed-2") < 1e-6


def test_without_deepspeed_one_line_says_what_to_install(settings, fit, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(train.settings, "find_spec", lambda name: None)
    assert fit(settings(**{"run.strategy": "deepspeed_stage_1"})) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install 'seecoder[deepspeed]'" in error
    assert not (tmp_path / "run").exists()


def test_the_plan_says_what_is_shared_out(settings, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings(**{"run.strategy": "deepspeed_stage_2", "run.devices": 2})))
    assert main(["plan", "--config", str(path)]) == 0
    assert "AdamW's state and gradients shared out over 2 processes" in capsys.readouterr().out


def test_shares_shrink_with_the_number_of_processes():
    def memory(strategy: str, devices: int) -> float:
        run, costs = RunSettings("run", 1, strategy=strategy, devices=devices), Costs(98_913_792, {}, 0, {}, 0)
        return trained_bytes(CountedRun(run, {"ema": {}}, {}, None, Hardware(), costs))

    assert memory("deepspeed_stage_2", 8) < memory("deepspeed_stage_1", 8) < memory("ddp", 8)
    assert memory("deepspeed_stage_1", 8) < memory("deepspeed_stage_1", 2)


# Stage 2 adds micro-batches in another order, which float64 does not mind; its shares are float32 all the same. In
# float32 AdamW would make whole steps of the rounding errors of biases that have no true gradient.
DOUBLE = {"stage.class_path": "tests.behaviour.training.double_stage.DoubleSeeCoderStage"}


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "double"), [(STAGES[0], {}), (STAGES[1], DOUBLE)])
def test_two_processes_train_as_under_ddp(named, run, difference, export_difference, strategy, double):
    changes = {"run.devices": 2, "run.accumulate": 2, **double}
    assert run(named("ddp", "ddp", steps=3, **changes)) == 0
    assert run(named("zero", strategy, steps=3, **changes)) == 0
    assert difference("ddp", "zero", dtypes=not double) < (1e-6 if double else 1e-12)
    assert export_difference("ddp", "zero") < 1e-6


@pytest.mark.slow
def test_strategy_and_number_of_processes_may_change_on_resume(named, run, difference):
    steady = {"run.global_batch": 4, "stage.init_args.encoder.decoder_dropout": 0.0}
    for name, strategies in (("zero", [STAGES[1], STAGES[0], STAGES[0]]), ("ddp", ["ddp", "auto", "ddp"])):
        for step, (devices, strategy) in enumerate(zip((2, 1, 2), strategies, strict=True), start=1):
            assert run(named(name, strategy, steps=2 * step, **{"run.devices": devices, **steady})) == 0
    assert difference("zero", "ddp") < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "double", "rank", "kind"), [(STAGES[0], {}, 0, "loss"), (STAGES[1], DOUBLE, 1, "nan")]
)
def test_what_spoils_one_process_is_skipped_in_both(
    named, run, difference, load, tmp_path, strategy, double, rank, kind
):
    changes = {"run.devices": 2, "run.accumulate": 2, **double}
    for name, chosen in (("ddp", "ddp"), ("zero", strategy)):
        assert run(named(name, chosen, steps=4, **changes), rank=rank, step=2, kind=kind) == 0
    checkpoint = load(tmp_path / "zero" / "step-00000004.ckpt")
    assert checkpoint["guard"]["skipped"] == 1
    assert {int(state["step"]) for state in checkpoint["optimizer_states"][0]["state"].values()} == {3}
    assert difference("ddp", "zero", dtypes=not double) < (1e-6 if double else 1e-12)


@pytest.mark.slow
def test_sigterm_to_the_second_process_saves_once_and_continues_exactly(named, run, difference, tmp_path):
    changes = {"run.devices": 2, "run.checkpoint_every": 100}
    zero = named("zero", STAGES[1], steps=5, **changes)
    assert run(zero, rank=1, step=2, kind="signal") == 143
    assert [path.name for path in (tmp_path / "zero").glob("step-*.ckpt")] == ["step-00000003.ckpt"]
    assert run(zero) == 0
    assert run(named("ddp", "ddp", steps=5, **changes)) == 0
    assert difference("zero", "ddp") < 1e-6
