"""What the training benchmark counts and compares."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


@pytest.fixture
def bench() -> Any:
    from scripts.benchmarks import training

    return training


def workload(device: str) -> Any:
    from scripts.benchmarks.training_levers import Workload

    folder = Path("none")
    return Workload("x", folder, {}, 8, (1, 2), folder, folder, torch.device(device), workers=1, kept=True)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_lever_is_measured_alone_and_all_together(device: str):
    from scripts.benchmarks.training_levers import ALL, FOR_MEMORY, NAIVE, NAMES

    rows = workload(device).variants(set())
    naive = {name for name, on in asdict(rows.pop(NAIVE)).items() if on}
    assert naive == ({"autocast"} if device == "cuda" else set())
    together = {name for name, on in asdict(rows.pop(ALL)).items() if on}
    assert together == set(NAMES) - FOR_MEMORY
    alone = [{name for name, on in asdict(levers).items() if on} - naive for levers in rows.values()]
    assert sorted(map(sorted, alone)) == sorted([name] for name in set(NAMES) - naive)
    fewer = workload(device).variants({"compiled"}, leave_one_out=True)
    assert not any(levers.compiled for levers in fewer.values())
    assert sum(name.startswith("all but") for name in fewer) == len(NAMES) - 2 - len(naive)


def test_what_backward_keeps_is_counted_once_and_without_weights():
    from scripts.benchmarks.training_levers import kept_for_backward

    weight, inputs = torch.nn.Parameter(torch.ones(3, 5)), torch.ones(7, 3)
    with kept_for_backward({weight.data_ptr()}) as total:
        hidden = inputs @ weight  # keeps `inputs`, 84 bytes, and the weight
        hidden.exp().square().sum().backward()  # keep the one result of `exp`, 140 bytes
    assert sum(total.values()) == 84 + 140


def rows(device: str, ratio: float | None, mfu: float = 0.5, speed: float = 100.0) -> list[dict[str, Any]]:
    """What a measurement finds; without a ratio, all levers together ran out of memory."""
    from scripts.benchmarks.training_levers import ALL, NAIVE

    head = {"workload": "Shapes", "device": device, "peak_flops": 989e12, "peak_origin": "published for h100"}
    naive = {"lever": NAIVE, "ratio": 1.0, "mfu": 0.1, "images_per_second": 20.0}
    fast = {"lever": ALL, "ratio": ratio, "mfu": mfu, "images_per_second": speed}
    return [head, naive, *([fast] if ratio is not None else [])]


class ScriptedLoop:
    """Turns of given speeds in place of a training; 0 stands for memory that runs out."""

    speeds: dict[str, list[float]]
    log: list[str]

    def __init__(self, work: Any, levers: Any):
        self.name, self.first_loss = levers, 0.25
        self.log.append(f"open {levers}")

    def turn(self, steps: int) -> Any:
        from scripts.benchmarks.training_levers import Turn

        self.log.append(f"{self.name} {steps}")
        if steps == 1:
            return None
        speed = self.speeds[self.name].pop(0)
        if not speed:
            raise torch.OutOfMemoryError
        return Turn(seconds=1.0, waited=0.25, pictures=int(speed), processor=0.5)

    def memory(self) -> float:
        return 3 * 2.0**20

    def close(self) -> None:
        self.log.append(f"close {self.name}")


@pytest.fixture
def measure(bench: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Measure loops with scripted speeds; gives the rows and what happened."""

    def run(speeds: dict[str, list[float]], repetitions: int, kept: bool = True) -> tuple[Any, list[str]]:
        monkeypatch.setattr(bench, "Loop", ScriptedLoop)
        monkeypatch.setattr(bench, "measured_peak", lambda device: 1000.0)
        ScriptedLoop.speeds, ScriptedLoop.log = {name: [*values] for name, values in speeds.items()}, []

        about = {"name": "work", "device": torch.device("cpu"), "batches": (2, 4), "kept": kept}
        work = SimpleNamespace(**about, flops=lambda levers: 5)
        measurement = bench.Measurement(work, {name: Name(name) for name in speeds})
        measurement.run(7, repetitions)
        return measurement.rows(), ScriptedLoop.log

    return run


class Name(str):
    """Levers that are their own name."""

    large_batch = False


def test_a_ratio_is_that_of_two_turns_of_one_repetition(measure: Any):
    from scripts.benchmarks.training_levers import NAIVE

    (head, naive, fast), log = measure({NAIVE: [10, 20, 40], "fast": [30, 40, 100]}, 3)
    assert [row["lever"] for row in (naive, fast)] == [NAIVE, "fast"]
    assert (naive["ratio_least"], naive["ratio"], naive["ratio_most"]) == (1, 1, 1)
    assert (fast["ratio_least"], fast["ratio"], fast["ratio_most"]) == (2, 2.5, 3)  # 3, 2, 2.5: medians' ratio is 2
    assert (naive["images_per_second"], fast["images_per_second"]) == (20, 40)
    assert fast["mfu"] == pytest.approx(40 * 5 / 1000)
    assert (fast["mib_per_image"], fast["input_share"], fast["first_loss"], fast["batch"]) == (3, 0.25, 0.25, 2)
    assert (head["processors_used"], head["out_of_memory"], head["peak_flops"]) == (0.5, [], 1000)
    first = [f"open {NAIVE}", f"{NAIVE} 1", f"{NAIVE} 7", "open fast", "fast 1", "fast 7"]
    then = ["fast 7", f"{NAIVE} 7", f"{NAIVE} 7", "fast 7"]  # backwards, then forwards
    assert log == [*first, *then, f"close {NAIVE}", "close fast"]


def test_loops_that_are_not_kept_are_made_anew_for_each_turn(measure: Any):
    from scripts.benchmarks.training_levers import NAIVE

    _, log = measure({NAIVE: [10, 20]}, 2, kept=False)
    assert log == 2 * [f"open {NAIVE}", f"{NAIVE} 1", f"{NAIVE} 7", f"close {NAIVE}"]


@pytest.mark.parametrize("kept", [True, False])
def test_what_runs_out_of_memory_is_closed_named_and_not_tried_again(measure: Any, kept: bool):
    from scripts.benchmarks.training_levers import NAIVE

    (head, *found), log = measure({NAIVE: [10, 20], "large": [30, 0], "huge": [0]}, 2, kept)
    assert [row["lever"] for row in found] == [NAIVE]
    assert head["out_of_memory"] == ["huge", "large"]
    assert log.count("huge 7") == 1
    assert sum(line.startswith("open") for line in log) == sum(line.startswith("close") for line in log)


def test_without_a_naive_loop_there_is_a_speed_and_no_ratio(measure: Any, bench: Any, capsys: pytest.CaptureFixture):
    from scripts.benchmarks.goals import training_verdicts
    from scripts.benchmarks.training_levers import ALL, NAIVE

    found, _ = measure({NAIVE: [0], ALL: [30, 40, 50]}, 3)
    assert found[1]["images_per_second"] == 40
    assert found[1]["ratio"] is None
    bench.print_speeds(found)
    assert "no naive loop" in capsys.readouterr().out
    (verdict,) = training_verdicts(found[0], found[1])
    assert not verdict.is_met


@pytest.fixture
def run_bench(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run the script on rows that are given in place of measured ones."""

    def run(found: list[dict[str, Any]], per_core: float, *arguments: str) -> tuple[int, Any]:
        out = tmp_path / "out.json"
        speed = {"per_second": per_core, "kilobytes": 1.0, "milliseconds": {}}
        monkeypatch.setattr(bench, "train", lambda options, work: found)
        monkeypatch.setattr(bench, "loader_speed", lambda folder: speed)
        monkeypatch.setattr(bench, "world_workload", lambda *_: None)
        monkeypatch.setattr(sys, "argv", ["bench_training", "--out", str(out), *arguments])
        return bench.main(), json.loads(out.read_text())

    return run


@pytest.mark.parametrize(("ratio", "per_core", "code"), [(2.1, 260.0, 0), (1.9, 260.0, 1), (2.1, 240.0, 1)])
def test_on_a_cpu_the_script_ends_with_its_verdicts(run_bench: Any, capsys, ratio, per_core, code):
    ended, kept = run_bench(rows("cpu", ratio), per_core, "--parts", "world", "loader")
    assert ended == code
    assert len(kept["verdicts"]) == 2
    out = capsys.readouterr().out
    assert out.splitlines()[-2:] == kept["verdicts"]
    assert ("NOT met" in out) == bool(code)


def test_what_is_measured_is_kept_when_a_later_part_fails(run_bench: Any, bench: Any, monkeypatch, tmp_path: Path):
    def fail(*_: Any) -> Any:
        raise RuntimeError("no disk")

    monkeypatch.setitem(bench.PARTS, "loader", fail)
    with pytest.raises(RuntimeError, match="no disk"):
        run_bench(rows("cpu", 2.1), 260.0, "--parts", "world", "loader")
    kept = json.loads((tmp_path / "out.json").read_text())
    assert kept["world"][2]["ratio"] == 2.1
    assert len(kept["verdicts"]) == 1
