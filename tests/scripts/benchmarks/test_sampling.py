"""The sampling benchmark runs every method with SDXL's interface, and says what falls short."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def bench() -> Any:
    from scripts.benchmarks import sampling

    return sampling


def test_the_clock_counts_nested_calls_once_and_puts_everything_back(bench: Any, monkeypatch: pytest.MonkeyPatch):
    now = [0.0]

    def later(seconds: float) -> None:
        now[0] += seconds

    class Owner:
        def outer(self) -> None:
            later(1.0)
            self.inner()

        def inner(self) -> None:
            later(2.0)

    owner, module, clock = Owner(), SimpleNamespace(own=lambda: later(4.0)), bench.Clock()
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    own = module.own
    with clock.around(owner, "outer"), clock.around(owner, "inner"), clock.around(module, "own"):
        owner.outer()
        later(100.0)
        owner.inner()
        module.own()
    assert clock.seconds == 3.0 + 2.0 + 4.0
    assert vars(owner) == {}
    assert module.own is own


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_shortfalls_are_named(bench: Any):
    good = {
        "evaluations": [{"method": "plain", "pixels": 2048, "counted": 200.0, "arithmetic": 200, "equal": True}],
        "overhead": [{"method": "plain", "share_outside": 0.02, "within_goal": True}],
    }
    assert list(bench.shortfalls(good)) == []
    bad = {
        "evaluations": [{**good["evaluations"][0], "counted": 210.0, "equal": False}],
        "overhead": [{"method": "plain", "share_outside": 0.07, "within_goal": False}],
    }
    evaluations, overhead = bench.shortfalls(bad)
    assert "210 evaluations, 200 expected" in evaluations
    assert "7.0% of the run" in overhead


def test_what_is_counted_is_the_arithmetic(bench: Any, monkeypatch: pytest.MonkeyPatch):
    """The cheap rows of the table; the script counts all."""
    cheap = ("plain", "RectifiedHR")
    monkeypatch.setattr(bench, "ARITHMETIC", tuple(row for row in bench.ARITHMETIC if row[0] in cheap))
    rows = bench.evaluations()
    assert len(rows) == 4
    assert all(row["equal"] for row in rows)
