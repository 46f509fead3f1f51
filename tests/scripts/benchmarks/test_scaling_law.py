"""What `scripts/benchmarks/scaling_law.py` makes of its measurements; the measurements themselves take minutes."""

from pathlib import Path
from typing import Any

import pytest

from train.estimate.scaling import ring_seconds

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


@pytest.fixture
def law(monkeypatch: pytest.MonkeyPatch) -> Any:
    from scripts.benchmarks import scaling_law

    return scaling_law


@pytest.mark.parametrize("processes", [2, 4])
def test_latency_and_bandwidth_come_back(law: Any, processes: int):
    sizes = [1e6, 4e6, 64e6, 400e6]
    times = [ring_seconds(size, processes, 0.8e9, 150e-6) for size in sizes]
    found = law.exchange_law({"bytes": sizes, "seconds": times}, processes)
    assert found["latency"] == pytest.approx(150e-6)
    assert found["bandwidth"] == pytest.approx(0.8e9)
    assert found["worst"] < 1e-9


def test_noise_gives_no_negative_bandwidth(law: Any):
    found = law.exchange_law({"bytes": [1e6, 4e6], "seconds": [0.02, 0.01]}, 2)
    assert found["bandwidth"] > 0
    assert found["latency"] >= 0


def test_two_processes_are_predicted_from_one(law: Any, capsys: pytest.CaptureFixture[str]):
    """Steps of 0.1 + 0.01 n s; 4 MB take 2 (2 MB / 1 GB/s + 1 ms) = 6 ms; two slow each other by a fifth."""
    sizes = [4, 16, 48]
    alone = [0.1 + 0.01 * size for size in sizes]
    result = {
        "steps": {"sizes": sizes, "alone": alone, "parts": {"unet forward": alone}, "processor": 1.0},
        "pair": {
            "sizes": sizes,
            "alone": [1.2 * value for value in alone],
            "together": [1.2 * value + 0.006 for value in alone],
            "gradient_bytes": 4_000_000,
            "processor": 0.5,
        },
        "exchange": {"2": {"bytes": [1e6, 9e6], "seconds": [ring_seconds(size, 2, 1e9, 1e-3) for size in (1e6, 9e6)]}},
        "flops": {"unet forward": 10**9},
    }
    law.show(result)
    rows = result["predictions"]
    for row, value in zip(rows, alone, strict=True):
        assert row["exchange_seconds"] == pytest.approx(0.006)
        assert row["one"] == pytest.approx(row["batch"] / value)
        assert row["predicted"] == pytest.approx(2 * row["batch"] / (value + 0.006))
        assert row["predicted_here"] == pytest.approx(row["measured"])
    out = capsys.readouterr().out
    assert "NOT met" in out
    assert "CAUTION: pair had 50% of a processor" in out
    assert "CAUTION: steps" not in out
