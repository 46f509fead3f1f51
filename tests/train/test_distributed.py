"""Two processes on this machine are one process with twice the batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[2]


def run(config: dict, folder: Path, *arguments: str) -> int:
    path = folder / f"{Path(config['run']['folder']).name}.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "train", "fit", "--config", str(path), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.returncode


def gradients(checkpoint: dict) -> list[torch.Tensor]:
    """First moments after one step are (1 - 0.9) times the gradients."""
    return [state["exp_avg"] for _, state in sorted(checkpoint["optimizer_states"][0]["state"].items())]


@pytest.mark.parametrize("attention", ["spatial"])
def test_gradients_of_two_processes_equal_those_of_one(settings, fit, load, tmp_path, attention):
    def config(name: str, **changes):
        return settings(
            **{
                "run.folder": str(tmp_path / name),
                "run.max_steps": 1,
                "stage.init_args.encoder.decoder_dropout": 0.0,
                "stage.init_args.encoder.decoder_attention": attention,
                "data.init_args.held_out": 0,
                "data.init_args.held_out_world": False,
                **changes,
            }
        )

    assert fit(config("one", **{"data.init_args.batch_size": 4})) == 0
    assert fit(config("accumulated", **{"data.init_args.batch_size": 1, "run.accumulate": 4})) == 0
    run(config("two", **{"data.init_args.batch_size": 2, "run.devices": 2, "run.strategy": "ddp"}), tmp_path)
    expected = gradients(load(tmp_path / "one" / "step-00000001.ckpt"))
    norm = torch.cat([gradient.flatten() for gradient in expected]).norm()
    for name in ("accumulated", "two"):
        found = gradients(load(tmp_path / name / "step-00000001.ckpt"))
        differences = [one - other for one, other in zip(expected, found, strict=True)]
        # Gradients are ten times these moments. Measured: 1.5e-6 at most, of a largest gradient of 0.08.
        assert max(float(difference.abs().max()) for difference in differences) < 1e-6, name
        # Float32 leaves 1.4e-5: what lies before a GroupNorm is a small sum of large parts.
        assert float(torch.cat([difference.flatten() for difference in differences]).norm() / norm) < 3e-5, name


@pytest.mark.slow
def test_world_size_may_change_on_resume(settings, fit, load, tmp_path):
    def config(devices: int, steps: int, folder: str):
        return settings(
            **{
                "run.folder": str(tmp_path / folder),
                "run.max_steps": steps,
                "run.devices": devices,
                "run.strategy": "ddp" if devices > 1 else "auto",
                "run.global_batch": 4,
                "stage.init_args.encoder.decoder_dropout": 0.0,
                "data.init_args.held_out": 0,
                "data.init_args.held_out_world": False,
            }
        )

    for devices, steps in ((2, 2), (1, 4), (2, 6)):
        run(config(devices, steps, "changing"), tmp_path)
    run(config(1, 6, "steady"), tmp_path)
    ours, theirs = (load(tmp_path / name / "step-00000006.ckpt")["state_dict"] for name in ("changing", "steady"))
    worst = max(float((ours[name] - value).abs().max()) for name, value in theirs.items() if value.is_floating_point())
    assert worst < 1e-3
