"""Peaks and memory that estimates assume."""

import pytest
import torch

from train.estimate.hardware import DEVICES, GIB, Hardware
from train.settings import RunSettings

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
