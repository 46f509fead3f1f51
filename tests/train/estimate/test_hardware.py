"""Peaks and memory that estimates assume."""

import json
import re
from typing import Any

import pytest
import torch

import train.estimate.hardware
from seecoder.base_model.known_bases import BaseSizes
from train.cli import main
from train.estimate.costs import Costs
from train.estimate.hardware import DEVICES, GIB, CountedRun, Hardware, count_run, device_bytes, trained_bytes
from train.settings import OptimizerSettings, RunSettings
from train.stages.seecoder import SeeCoderStage

CPU = RunSettings("run", 1, accelerator="cpu")
HALF = RunSettings("run", 1, accelerator="gpu", precision="bf16-mixed")


def test_peaks_are_those_of_the_data_sheets_without_sparsity():
    """NVIDIA's sheets give bfloat16 with sparsity, which doubles it: 624, 1,979, 1,513, 1,671, 1,979, 733 TFLOP/s."""
    sheets = {"a100": 624, "h100": 1979, "h100-pcie": 1513, "h100-nvl": 1671, "h200": 1979, "l40s": 733}
    for name, sparse in sheets.items():
        assert DEVICES[name].bfloat16 == pytest.approx(sparse / 2, rel=0.015), name


def test_peak_and_speed_follow_device_precision_and_options():
    assert Hardware().name(CPU) == "cpu"
    assert Hardware().peak(HALF) == 312e12
    assert Hardware().peak(RunSettings("run", 1, accelerator="gpu")) == 156e12
    assert Hardware(device="h100").peak(HALF) == 989e12
    assert Hardware(tflops=5).peak(HALF) == 5e12
    assert Hardware(tflops=5, efficiency=0.5).speed(HALF) == 2.5e12


def test_the_memory_of_this_machine(monkeypatch: pytest.MonkeyPatch):
    assert Hardware.of_this_machine(CPU).name(HALF) == "cpu"

    class Properties:
        total_memory = 24 * GIB

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    assert Hardware.of_this_machine(HALF).memory(HALF) == 24 * GIB
    assert Hardware(device="l40s").memory(HALF) == 44 * GIB


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", "abacus"),
        ("tflops", -3.0),
        ("memory_gib", 0.0),
        ("efficiency", 0.0),
        ("efficiency", 1.1),
        ("fixed_seconds", -0.1),
        ("fixed_seconds", float("nan")),
        ("network_gb", 0.0),
        ("network_gb", float("inf")),
    ],
)
def test_an_impossible_assumption_is_refused(name: str, value: float | str):
    settings: dict = {name: value}
    with pytest.raises(ValueError, match=f"`{name}`={value!r}"):
        Hardware(**settings)


def test_a_micro_batch_may_cost_nothing_beside_its_pictures():
    assert Hardware(fixed_seconds=0.0).fixed_seconds == 0


AUTO = {"stage.init_args.gradient_checkpointing": "auto"}
GPU = ["--run.accelerator", "gpu", "--run.precision", "bf16-mixed"]
RUN = RunSettings("run", 1, accelerator="cpu")
SIZES = BaseSizes("nowhere", {}, {})


def costs(activation_bytes: int) -> Costs:
    return Costs(1000, {}, frozen_bytes=7, flops={}, activation_bytes=activation_bytes)


def test_memory_is_that_of_its_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train.estimate.hardware, "count_costs", lambda *_, **__: costs(100))
    counted = count_run(RUN, {"ema": {}}, {"batch_size": 4}, SIZES, None, Hardware())
    parts = {"frozen": 7, "trained": 20_000, "context": 0, "pictures": pytest.approx(440)}  # + 10 %
    assert device_bytes(counted) == parts
    assert counted.checkpoint_bytes == 16_000
    on_gpu = RunSettings("run", 1, accelerator="gpu", precision="bf16-mixed")
    counted = count_run(on_gpu, {}, {"batch_size": 4}, SIZES, None, Hardware())
    assert device_bytes(counted) == {**parts, "trained": 18_000, "context": GIB}
    assert counted.checkpoint_bytes == 12_000


def test_trained_parameters_take_less_where_their_state_is_shared_out():
    def taken(**changes: Any) -> float:
        run, costs = RunSettings("run", 1, **changes), Costs(10**9, {}, 0, {}, 0)
        return trained_bytes(CountedRun(run, {}, {}, None, Hardware(), costs)) / 10**9

    bucket = 4 * train.estimate.hardware.BUCKET / 10**9
    assert taken() == 16  # weights, gradients, two moments
    assert taken(devices=8) == 20  # and a copy of the gradients for the exchange
    assert taken(devices=8, strategy="deepspeed_stage_1") == pytest.approx(4 * 2.5 + bucket)
    assert taken(devices=8, strategy="deepspeed_stage_2") == pytest.approx(4 * 1.625 + bucket)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(100, ()), (99, ("encoder",)), (60, ("encoder",)), (59, ("encoder", "unet")), (1, ("encoder", "unet"))],
)
def test_as_few_parts_recompute_as_leave_a_reserve(
    monkeypatch: pytest.MonkeyPatch, limit: int, expected: tuple[str, ...]
):
    thousands = {(): 95, ("encoder",): 57, ("encoder", "unet"): 28}  # of 100 and 60, a twentieth stays free

    def count(options: dict[str, Any], *_: Any, **__: Any) -> Costs:
        return costs(round((1000 * thousands[options["gradient_checkpointing"]] - 16_007) / 1.1))

    monkeypatch.setattr(train.estimate.hardware, "count_costs", count)
    hardware = Hardware(memory_gib=(1000 * limit + 1) / GIB)
    counted = count_run(RUN, {"gradient_checkpointing": "auto"}, {"batch_size": 1}, SIZES, None, hardware)
    assert counted.options["gradient_checkpointing"] == expected


@pytest.mark.parametrize("given", [None, (), ["unet"]])
def test_parts_that_are_named_are_never_changed(monkeypatch: pytest.MonkeyPatch, given: Any):
    monkeypatch.setattr(train.estimate.hardware, "count_costs", lambda *_, **__: costs(10**15))
    counted = count_run(RUN, {"gradient_checkpointing": given}, {"batch_size": 1}, SIZES, None, Hardware())
    assert counted.options["gradient_checkpointing"] == tuple(given or ())


@pytest.mark.heavy
@pytest.mark.parametrize("memory", [1.5, 40.0])  # GiB: not enough even so, and plenty
def test_a_plan_says_what_it_chose(settings, tmp_path, capsys, memory):
    path = tmp_path / "config-in.yaml"
    changes = {"data.init_args.batch_size": 64, "data.init_args.image_size": 256}
    path.write_text(json.dumps(settings(**AUTO, **changes)))
    code = main(["plan", "--config", str(path), *GPU, "--hardware.memory_gib", str(memory)])
    shown = capsys.readouterr()
    assert ("recomputed in the backward pass: encoder" in shown.out) == (memory < 40)
    assert code == (2 if memory < 40 else 0)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("fraction", "said"), [(0.94, ": yes, as it is: "), (0.96, ": yes, with "), (1.05, ": yes, with ")]
)
def test_a_plan_says_what_makes_it_fit(settings, tmp_path, capsys, fraction, said):
    path = tmp_path / "config-in.yaml"
    path.write_text(json.dumps(settings(**{"data.init_args.batch_size": 1000, "data.init_args.image_size": 256})))
    plan = ["plan", "--config", str(path), *GPU]
    assert main([*plan, "--hardware.memory_gib", "100"]) == 0
    (needed,) = re.findall(r"memory +([\d.]+) GiB of 100.0 GiB", capsys.readouterr().out)
    assert float(needed) > 10  # so that its last digit is less than half a percent
    assert main([*plan, "--hardware.memory_gib", str(float(needed) / fraction)]) == (2 if fraction > 1 else 0)
    shown = capsys.readouterr()
    (line,) = [line for line in shown.out.splitlines() if line.startswith("fits ")]
    assert said in line
    assert (said in shown.err) == (fraction > 1)


@pytest.mark.heavy
def test_a_run_chooses_by_its_machine(settings, fit, capsys, monkeypatch, tmp_path):
    assert fit(settings(**AUTO, **{"run.max_steps": 1})) == 0
    assert "nothing will recompute" in capsys.readouterr().out
    assert "gradient_checkpointing: []" in (tmp_path / "run" / "config.yaml").read_text()
    monkeypatch.setattr(Hardware, "of_this_machine", classmethod(lambda cls, run: cls(memory_gib=1e-6)))
    assert fit(settings(**AUTO, **{"run.max_steps": 1, "run.folder": str(tmp_path / "small")})) == 0
    assert "encoder and unet will recompute" in capsys.readouterr().out


def test_a_stage_that_is_made_by_hand_wants_names(base):
    with pytest.raises(ValueError, match="must be names of parts"):
        SeeCoderStage(OptimizerSettings(), base=str(base), encoder={}, gradient_checkpointing="auto")
