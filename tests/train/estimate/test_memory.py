"""What recomputes its activations is chosen by the memory that there is."""

import json
import re

import pytest
import torch

from train.cli import main
from train.estimate.hardware import GIB, Hardware
from train.estimate.memory import DeviceMemory, fewest_checkpointed
from train.settings import OptimizerSettings, RunSettings
from train.stages.seecoder import SeeCoderStage

AUTO = {"stage.init_args.gradient_checkpointing": "auto"}
GPU = ["--run.accelerator", "gpu", "--run.precision", "bf16-mixed"]


def test_memory_adds_up():
    memory = DeviceMemory(frozen=10, trained=20, context=5, picture=3, pictures=4)
    assert memory.total == 47
    assert memory.most_pictures(50) == 5
    assert memory.most_pictures(49.9) == 4


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(100, ()), (99, ("encoder",)), (60, ("encoder",)), (59, ("encoder", "unet")), (1, ("encoder", "unet"))],
)
def test_as_few_parts_recompute_as_leave_a_reserve(limit, expected):
    bytes_of = {(): 95, ("encoder",): 57, ("encoder", "unet"): 28}  # of 100 and 60, a twentieth stays free
    assert fewest_checkpointed(lambda parts: DeviceMemory(bytes_of[parts], 0, 0, 0, 0), limit) == expected


@pytest.mark.parametrize("memory", [1.5, 40.0])  # GiB: not enough even so, and plenty
def test_a_plan_says_what_it_chose(settings, tmp_path, capsys, memory):
    path = tmp_path / "config-in.yaml"
    changes = {"data.init_args.batch_size": 64, "data.init_args.image_size": 256}
    path.write_text(json.dumps(settings(**AUTO, **changes)))
    code = main(["plan", "--config", str(path), *GPU, "--hardware.memory_gib", str(memory)])
    shown = capsys.readouterr()
    assert ("recomputed in the backward pass: encoder" in shown.out) == (memory < 40)
    assert code == (2 if memory < 40 else 0)


@pytest.mark.parametrize(("share", "note"), [(0.94, False), (0.96, True)])
def test_a_plan_notes_what_leaves_no_reserve(settings, tmp_path, capsys, share, note):
    path = tmp_path / "config-in.yaml"
    path.write_text(json.dumps(settings(**{"data.init_args.batch_size": 1000, "data.init_args.image_size": 256})))
    plan = ["plan", "--config", str(path), *GPU]
    assert main([*plan, "--hardware.memory_gib", "100"]) == 0
    (needed,) = re.findall(r"memory +([\d.]+) GiB of 100.0 GiB", capsys.readouterr().out)
    assert float(needed) > 10  # so that its last digit is less than half a percent
    assert main([*plan, "--hardware.memory_gib", str(float(needed) / share)]) == 0
    assert ("less than 5 % of the memory stays free" in capsys.readouterr().out) == note


def test_a_run_chooses_by_its_machine(settings, fit, capsys, monkeypatch, tmp_path):
    assert fit(settings(**AUTO, **{"run.max_steps": 1})) == 0
    assert "nothing will recompute" in capsys.readouterr().out
    assert "gradient_checkpointing: []" in (tmp_path / "run" / "config.yaml").read_text()
    monkeypatch.setattr(Hardware, "here", classmethod(lambda cls, run: cls(memory_gib=1e-6)))
    assert fit(settings(**AUTO, **{"run.max_steps": 1, "run.folder": str(tmp_path / "small")})) == 0
    assert "encoder and unet will recompute" in capsys.readouterr().out


def test_a_stage_that_is_made_by_hand_wants_names(base):
    with pytest.raises(ValueError, match="name the parts"):
        SeeCoderStage(OptimizerSettings(), base=str(base), encoder={}, gradient_checkpointing="auto")


def test_the_memory_of_this_machine(monkeypatch):
    assert Hardware.here(RunSettings("run", 1, accelerator="cpu")).name(RunSettings("run", 1)) == "cpu"

    class Properties:
        total_memory = 24 * GIB

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    run = RunSettings("run", 1, accelerator="gpu")
    assert Hardware.here(run).memory(run) == 24 * GIB
