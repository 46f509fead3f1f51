"""The training benchmark: turns are interleaved, ratios are those of one repetition, goals decide the exit code."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scripts.benchmarks import training
from scripts.benchmarks.training_levers import ALL, NAIVE


class Name(str):
    """Levers that are their own name."""


class ScriptedLoop:
    """Turns of given speeds in place of a training."""

    batch_size, first_loss = 2, 0.25
    speeds: dict[str, list[float]]
    log: list[str]

    def __init__(self, work: Any, levers: Any) -> None:
        self.name = levers

    def turn(self, steps: int) -> float:
        self.log.append(f"{self.name} {steps}")
        return 0.0 if steps == 1 else self.speeds[self.name].pop(0)

    def memory(self) -> float:
        return 3 * 2.0**20

    def close(self) -> None:
        self.log.append(f"close {self.name}")


def test_a_ratio_is_that_of_two_turns_of_one_repetition(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "Loop", ScriptedLoop)
    monkeypatch.setattr(training, "measured_peak", lambda device: 1000.0)
    ScriptedLoop.speeds, ScriptedLoop.log = {NAIVE: [10, 20, 40], "fast": [30, 40, 100]}, []
    work: Any = SimpleNamespace(device=torch.device("cpu"), flops=lambda levers: 5)
    variants: Any = {name: Name(name) for name in ScriptedLoop.speeds}
    naive, fast = training.measure(work, variants, steps=7, repetitions=3)
    assert (naive["loop"], naive["ratio_min"], naive["ratio"], naive["ratio_max"]) == (NAIVE, 1, 1, 1)
    assert (fast["ratio_min"], fast["ratio"], fast["ratio_max"]) == (2, 2.5, 3)  # 3, 2, 2.5: medians' ratio is 2
    assert (naive["images_per_second"], fast["images_per_second"]) == (20, 40)
    assert fast["mfu"] == pytest.approx(40 * 5 / 1000)
    assert (fast["mib_per_image"], fast["first_loss"], fast["batch"]) == (3, 0.25, 2)
    then = [f"{NAIVE} 7", "fast 7", "fast 7", f"{NAIVE} 7", f"{NAIVE} 7", "fast 7"]  # every other one goes backwards
    assert ScriptedLoop.log == [f"{NAIVE} 1", "fast 1", *then, f"close {NAIVE}", "close fast"]


@pytest.mark.parametrize(("ratio", "code"), [(2.1, 0), (1.9, 1)])
def test_the_program_ends_with_its_verdicts(monkeypatch, tmp_path: Path, capsys, ratio, code):
    rows = [{"loop": NAIVE, "ratio": 1.0}, {"loop": ALL, "ratio": ratio, "images_per_second": 1.0, "mfu": 0.3}]
    work = SimpleNamespace(name="the world", device=torch.device("cpu"), variants=dict)
    monkeypatch.setattr(training, "world_workload", lambda *_: work)
    monkeypatch.setattr(training, "measure", lambda *_: rows)
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["training.py", "--out", str(out)])
    assert training.main() == code
    kept = json.loads(out.read_text())
    assert kept["world"] == rows
    assert len(kept["verdicts"]) == 1
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1:] == kept["verdicts"]
    assert ("NOT met" in printed) == bool(code)
