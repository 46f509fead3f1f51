import json
from pathlib import Path

import pytest
import torch

from scripts.benchmarks.gpu_parts import PUBLISHED, Findings, gpu_peak, known_device, sampling_row
from scripts.benchmarks.random_networks import TOY_SDXL_UNET, unet
from seecoder.sampling import DemoFusion


def test_rows_are_kept_at_once_and_a_lack_of_memory_costs_only_its_own(tmp_path: Path):
    findings = Findings(tmp_path / "found.json", smoke=True)

    def fails() -> dict[str, float]:
        raise torch.OutOfMemoryError

    findings.row(lambda: {"seconds": 1.5}, method="one")
    findings.row(fails, method="two")
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert rows[0] == {"method": "one", "seconds": 1.5, "peak_gib": 0.0}
    assert rows[1] == {"method": "two", "peak_gib": None, "problem": "out of memory"}


@torch.no_grad()
def test_evaluations_of_demofusion_are_the_arithmetic_of_its_phases():
    row = sampling_row(unet(**TOY_SDXL_UNET), DemoFusion(skip_dead_steps=False), scale=2, steps=4)
    assert row["evaluations"] == 4 + 4 * 13  # the native phase, then nine windows and four lattices a step
    assert row["seconds"] > 0


def test_published_counts_are_those_of_fifty_steps():
    assert PUBLISHED["plain"] == (50 * 4, 50 * 16)
    assert PUBLISHED["DemoFusion"] == (50 + 50 * 13, 700 + 50 * 34 + 50 * 65)


NAMES = {
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA A100 80GB PCIe": "a100",
    "NVIDIA A100-SXM4-40GB": "a100-40",
    "NVIDIA A100-PCIE-40GB": "a100-40",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H100 NVL": "h100-nvl",
    "NVIDIA H200": "h200",
    "NVIDIA L40S": "l40s",
    "NVIDIA GeForce RTX 4090": "rtx4090",
    "NVIDIA GeForce RTX 4090 D": None,
    "NVIDIA GeForce RTX 4090 Laptop GPU": None,
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb": None,
    "NVIDIA L40": None,
    "Tesla T4": None,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_device_is_known_by_its_name_or_not_at_all(name):
    assert known_device(name) == NAMES[name]


def test_shares_refer_to_the_published_peak_of_a_known_device(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    assert gpu_peak(torch.device("cuda")) == (989e12, "published for h100")
