"""Optimizers are compared by runs that differ in nothing else."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from scripts.benchmarks import optimizer_table
from train.cli import build_parser
from train.optimizers import KNOWN


def test_every_optimizer_that_has_a_name_has_a_row_whose_settings_are_understood(tmp_path):
    assert set(optimizer_table.RATES) == set(KNOWN)
    for name, rate in optimizer_table.RATES.items():
        words = optimizer_table.command(name, tmp_path / "shards", 300, tmp_path)
        parsed = build_parser().parse_args(words[3:]).fit
        settings = parsed.stage.init_args.optimizer
        assert (settings.name, settings.lr, settings.warmup_steps, settings.clip_norm) == (name, rate, 50, 1.0)
        assert (parsed.run.max_steps, parsed.run.precision, parsed.stage.init_args.preview) == (300, "32-true", None)
        assert (parsed.stage.init_args.ema is None) == (name == "schedule_free")


@pytest.mark.heavy
def test_a_run_makes_a_row_and_one_that_fails_none(monkeypatch, capfd, tmp_path, shards):
    words = ["optimizer_table.py", str(shards), "--steps", "2", "--out", str(tmp_path), "--optimizers", "adamw", "lion"]
    monkeypatch.setattr(sys, "argv", words)
    real = subprocess.run

    def run(words, **options):
        if any('"lion"' in word for word in words):
            return SimpleNamespace(returncode=2)
        return real([*words, "--data.init_args.batch_size=2", "--data.init_args.held_out=4"], **options)

    monkeypatch.setattr(subprocess, "run", run)
    optimizer_table.main()
    output = capfd.readouterr()
    (line,) = [line for line in output.out.splitlines() if line.startswith("| adamw |")]
    assert float(line.split("|")[5]) > 7.5  # two numbers of four bytes for each weight
    assert "lion ended with exit code 2" in output.err
    assert "| lion |" not in output.out
