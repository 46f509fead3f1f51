"""Names of devices, as CUDA gives them, and the peak that shares refer to."""

import pytest

from train.estimate.hardware import DEVICES, known_device

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


def test_peaks_are_those_of_the_data_sheets_without_sparsity():
    """NVIDIA's sheets give bfloat16 with sparsity, which doubles it: 624, 1,979, 1,513, 1,671, 1,979, 733 TFLOP/s."""
    sheets = {"a100": 624, "h100": 1979, "h100-pcie": 1513, "h100-nvl": 1671, "h200": 1979, "l40s": 733}
    for name, sparse in sheets.items():
        assert DEVICES[name].bfloat16 == pytest.approx(sparse / 2, rel=0.015), name
