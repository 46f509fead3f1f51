"""Goals say whether a figure meets them, and what belongs to it."""

from typing import Any

import pytest

from scripts.benchmarks.goals import Verdict, exit_code, memory_verdicts, training_verdicts
from scripts.benchmarks.training_levers import ALL, NAIVE


def rows(device: str, ratio: float | None, mfu: float = 0.5, speed: float = 100.0) -> list[dict[str, Any]]:
    """What a measurement finds; without a ratio, all levers together ran out of memory."""
    head = {"workload": "Shapes", "device": device, "peak_flops": 989e12, "peak_origin": "published for h100"}
    naive = {"lever": NAIVE, "ratio": 1.0, "mfu": 0.1, "images_per_second": 20.0}
    fast = {"lever": ALL, "ratio": ratio, "mfu": mfu, "images_per_second": speed}
    return [head, naive, *([fast] if ratio is not None else [])]


def verdicts_of(found: list[dict[str, Any]]) -> list[Verdict]:
    head, *loops = found
    return list(training_verdicts(head, next((row for row in loops if row["lever"] == ALL), None)))


GPU = [
    (2.5, 0.4, [True, True]),
    (2.49, 0.4, [False, True]),
    (2.5, 0.399, [True, False]),
    (1.0, 0.1, [False, False]),
    (float("nan"), float("nan"), [False, False]),
    (None, 0.0, [False, False]),
]


@pytest.mark.parametrize(("ratio", "mfu", "expected"), GPU, ids=str)
def test_a_gpu_has_two_goals(ratio: float | None, mfu: float, expected: list[bool]):
    verdicts = verdicts_of(rows("cuda", ratio, mfu))
    assert [verdict.is_met for verdict in verdicts] == expected
    assert [str(verdict).count("NOT met") for verdict in verdicts] == [1 - met for met in expected]
    assert exit_code(verdicts) == (0 if all(expected) else 1)


def test_the_goal_is_said_in_pictures_of_this_device():
    """A picture of 3,064 GFLOP on an H100: 40 % of 989 TFLOP/s are 129 a second."""
    mfu = 120 * 3064e9 / 989e12
    _, share = verdicts_of(rows("cuda", 3.0, mfu, 120.0))
    assert "120.0 of 129.1 images/s" in str(share)
    assert "published for h100" in str(share)
    assert not share.is_met
    _, share = verdicts_of(rows("cuda", 3.0, 130 * 3064e9 / 989e12, 130.0))
    assert share.is_met


@pytest.mark.parametrize(("ratio", "expected"), [(2.0, True), (1.99, False), (None, False)])
def test_a_cpu_has_one_goal(ratio: float | None, expected: bool):
    (verdict,) = verdicts_of(rows("cpu", ratio, 0.01))
    assert verdict.is_met is expected


def test_memory_is_asked_for_at_4096_pixels_only_and_running_out_of_it_is_a_miss():
    rows = [
        {"method": "small", "pixels": 2048, "peak_gib": 40.0},
        {"method": "fits", "pixels": 4096, "peak_gib": 12.0},
        {"method": "large", "pixels": 4096, "peak_gib": 12.1},
        {"method": "huge", "pixels": 4096, "peak_gib": None},
    ]
    found = list(memory_verdicts(rows))
    assert [verdict.is_met for verdict in found] == [True, False, False]
    assert str(found[0]) == "fits at 4096, peak GiB: 12, goal ≤ 12: met"
    assert "out of memory" in str(found[2])
