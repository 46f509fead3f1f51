"""The GPU kit runs whole at toy size, keeps what it has, and says what was not measured."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmarks import gpu


@pytest.mark.heavy
def test_all_of_it_runs_on_a_cpu_at_toy_size(tmp_path: Path):
    out = tmp_path / "toy.json"
    gpu.measure(out, list(gpu.BUDGETS), smoke=True)
    parts = json.loads(out.read_text())["parts"]
    assert {name: part.get("problem") for name, part in parts.items()} == dict.fromkeys(gpu.BUDGETS)
    assert parts["tests"]["rows"][0]["skipped"] > 0
    assert [row["loop"] for row in parts["training"]["rows"]] == ["naive loop", "all levers for speed"]
    assert all(row["images_per_second"] > 0 for row in parts["training"]["rows"])
    assert {"fused", "default"} == set(parts["training"]["notes"]["optimizer step in ms"])
    rows = {(row["method"], row["pixels"]): row for row in parts["sampling"]["rows"]}
    assert len(rows) == 8
    assert rows["plain", 2048]["evaluations"] == 10 * 4  # ten steps of four native areas
    assert rows["plain", 4096]["evaluations"] == 10 * 16
    assert [row["batch"] for row in parts["encoder"]["rows"]] == [1, 32]
    assert parts["decoder"]["rows"][0]["pixels"] == 64


def test_without_a_gpu_the_kit_says_so_and_measures_nothing(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_a_part_that_hangs_keeps_what_it_had(monkeypatch: pytest.MonkeyPatch):
    real = subprocess.run

    def slow(command: list[str], **options: Any) -> Any:
        Path(command[4]).write_text(json.dumps({"rows": [{"batch": 1}]}))
        return real([sys.executable, "-c", "import time; time.sleep(60)"], **options)

    monkeypatch.setattr(subprocess, "run", slow)
    found = gpu.run_part("encoder", 0.5)
    assert found["rows"] == [{"batch": 1}]
    assert found["problem"] == "stopped after its budget of 0.5 s"


def test_the_report_says_what_was_not_measured_and_replaces_the_one_before(tmp_path: Path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{gpu.BEGIN}\nold\n{gpu.END}\nafter\n")
    rows = [{"method": "plain", "pixels": 4096, "evaluations": 800.0, "seconds": 12.5, "peak_gib": 11.0}]
    result = {"about": {"gpu": "X"}, "parts": {"sampling": {"rows": rows, "took": 3.0}}}
    gpu.render(result, readme)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| plain | 4096 | 800 |" in text
    assert sum(line.startswith("| not measured") for line in text.splitlines()) == 4
    assert "plain at 4096, peak GiB: 11, goal ≤ 12: met" in text
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="once each"):
        gpu.render(result, readme)
