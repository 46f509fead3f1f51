#!/usr/bin/env python
"""Loss and memory of each optimizer after equal steps in the world, as a table of Markdown.

    python -m data.build world runs/world_shards --count 4096
    scripts/benchmarks/optimizer_table.py runs/world_shards --steps 300

Each is a run of its own, as configs/world_seecoder.yaml but in float32, with the rate that is usual for it beside
AdamW's of 3e-3. Stopped, it goes on where it was; what is finished is not done again. One that is not installed is left
out.
"""

import argparse
import io
import json
import os
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from seecoder.threads import wait_passively

wait_passively()  # before torch is imported

import torch

from scripts.results import markdown
from train.run.metrics_file import read_metrics

RATES = {
    "adamw": 3e-3,
    "adamw8bit": 3e-3,
    "adamw8bit_torchao": 3e-3,
    "adafactor": 1e-2,
    "muon": 3e-3,
    "lion": 5e-4,
    "prodigy": 1.0,
    "schedule_free": 6e-3,
}
COLUMNS = ("optimizer", "rate", "held-out loss", "gap_shuffled", "state, bytes a weight")


def command(name: str, shards: Path, steps: int, folder: Path) -> list[str]:
    """The training of one row."""
    settings: dict[str, Any] = {"name": name, "lr": RATES[name], "warmup_steps": steps // 6, "clip_norm": 1.0}
    settings["schedule"] = "constant" if name == "schedule_free" else "cosine"
    if name.startswith("adamw") or name == "muon":
        settings["betas"] = [0.9, 0.95]  # as in the configuration
    options = {
        "run.folder": folder / name,
        "run.precision": "32-true",
        "run.max_steps": steps,
        "run.threads": 1,
        "run.evaluate_every": steps,
        "run.checkpoint_every": 50,
        "data.init_args.shards": shards,
        "stage.init_args.preview": "null",
        "stage.init_args.export_encoder": "false",
        "stage.init_args.optimizer": json.dumps(settings),
    }
    if name == "schedule_free":  # it has an average of its own
        options["stage.init_args.ema"] = "null"
    words = [f"--{key}={value}" for key, value in options.items()]
    return [sys.executable, "-m", "train", "fit", "--config", "configs/world_seecoder.yaml", *words]


def row(name: str, steps: int, folder: Path) -> dict[str, Any] | None:
    """What a finished run shows; None for one that is not."""
    path = folder / name / f"step-{steps:08d}.ckpt"
    if not path.is_file():
        return None
    with suppress(ImportError):
        import_module("torchao.optim")  # so that its state can be read
    saved, figures = torch.load(path, map_location="cpu", weights_only=True), read_metrics(path.parent / "metrics.csv")
    state = io.BytesIO()
    torch.save(saved["optimizer_states"], state)
    trained = sum(value.numel() for value in saved["state_dict"].values())
    loss, gap = (f"{figures[key][-1][1]:.5f}" for key in ("held_out_loss", "gap_shuffled"))
    return dict(zip(COLUMNS, (name, f"{RATES[name]:g}", loss, gap, f"{state.tell() / trained:.1f}"), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, help="shards of the world")
    parser.add_argument("--steps", type=int, default=300, help="of 32 pictures each (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/optimizers"), help="the runs (default: %(default)s)")
    parser.add_argument("--optimizers", nargs="+", choices=RATES, default=list(RATES), help="(default: all)")
    options = parser.parse_args()
    root = Path(__file__).resolve().parents[2]
    # torchao's step would be compiled for a minute; uncompiled it is the same.
    environment = {**os.environ, "TORCHDYNAMO_DISABLE": "1"}
    for name in options.optimizers:
        words = command(name, options.shards.resolve(), options.steps, options.out.resolve())
        if code := subprocess.run(words, cwd=root, env=environment).returncode:
            print(f"{name} ended with exit code {code}", file=sys.stderr)
    rows = [found for name in options.optimizers if (found := row(name, options.steps, options.out))]
    print(markdown(rows, COLUMNS))


if __name__ == "__main__":
    main()
