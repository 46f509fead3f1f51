import json
import sys

import pytest
import torch

from scripts.evaluation import first_stage_table
from seecoder.lpips import NETWORKS
from tests.fixtures.networks import random_lpips


@pytest.mark.heavy
def test_a_row_is_trained_once_and_measured(monkeypatch, tmp_path, capsys) -> None:
    (tmp_path / "lpips").mkdir()
    for network in NETWORKS:
        random_lpips(network, tmp_path / "lpips")
    out = tmp_path / "out"
    options = ["--lpips", str(tmp_path / "lpips"), "--out", str(out), "--rows", "vq-f8-published", "--steps", "3"]
    monkeypatch.setattr(sys, "argv", ["first_stage_table.py", *options, "--count", "4"])
    first_stage_table.main()
    capsys.readouterr()
    (row,) = json.loads((out / "table.json").read_text())["rows"]
    assert row["PSNR"] > 0
    assert row["LPIPS vgg"] > 0
    assert row["LPIPS alex"] > 0
    log = (out / "vq-f8-published" / "metrics.csv").read_bytes()
    first_stage_table.main()
    assert "is finished" in capsys.readouterr().out
    assert (out / "vq-f8-published" / "metrics.csv").read_bytes() == log
    assert "| vq-f8-published |" in (out / "table.md").read_text()


def test_blur_takes_high_frequencies_away() -> None:
    truth = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert first_stage_table.high_frequencies(truth, truth) == pytest.approx(0)
    assert first_stage_table.high_frequencies(0.5 * truth, truth) == pytest.approx(-6.02, abs=0.01)
    blurred = torch.nn.functional.avg_pool2d(truth, 3, 1, 1)
    assert first_stage_table.high_frequencies(blurred, truth) < -10
