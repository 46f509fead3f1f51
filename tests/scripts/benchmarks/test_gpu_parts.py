import json
from pathlib import Path

import torch

from scripts.benchmarks.gpu_parts import PUBLISHED, Findings, sampling_row
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
