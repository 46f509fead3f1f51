"""Two processes on this machine are one process with twice the batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from data.build import main as build
from tests.fixtures.training import BUCKETS

ROOT = Path(__file__).parents[3]


# Starts processes as a launcher does, but forks them when all is imported, which would take each of them ten seconds.
LAUNCHER = """
import os, socket, sys
import tests.behaviour.training.double_stage, train.run.trainer, train.sources
from train.cli import main

config, processes = sys.argv[1], int(sys.argv[2])
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
os.environ |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "GROUP_RANK": "0"}
os.environ["TORCHELASTIC_RUN_ID"] = "test"
children = []
for rank in range(processes):
    children.append(os.fork())
    if not children[-1]:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        code = main(["fit", "--config", config])
        sys.stderr.flush()
        os._exit(code)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def run(config: dict, folder: Path, forked: int = 0) -> None:
    """Run the command, in processes that it starts itself or in as many that are forked."""
    path = folder / f"{Path(config['run']['folder']).name}.yaml"
    path.write_text(yaml.safe_dump(config))
    words = ["-c", LAUNCHER, str(path), str(forked)] if forked else ["-m", "train", "fit", "--config", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]


def moments(checkpoint: dict) -> dict[str, torch.Tensor]:
    """AdamW's first moments, which are sums of gradients, and the weights."""
    states = checkpoint["optimizer_states"][0]["state"]
    gradients = torch.cat([state["exp_avg"].flatten() for _, state in sorted(states.items())])
    weights = [value.flatten() for value in checkpoint["state_dict"].values() if value.is_floating_point()]
    return {"gradients": gradients, "weights": torch.cat(weights)}


@pytest.mark.heavy
def test_processes_and_micro_batches_train_like_one_batch(settings, fit, load, tmp_path):
    """In float64: gradients differ by 2e-14 of the largest, weights by 3e-11. Float32 alone rounds by 2e-5."""
    shards = tmp_path / "shards"  # one for each of four processes
    assert build(["world", str(shards), "--count", "24", "--size", "32", "--samples-per-shard", "6"]) == 0

    def config(name: str, **changes):
        return settings(
            **{
                "run.folder": str(tmp_path / name),
                "run.max_steps": 2,
                "stage.class_path": "tests.behaviour.training.double_stage.DoubleSeeCoderStage",
                "stage.init_args.encoder.decoder_dropout": 0.0,
                "stage.init_args.encoder.decoder_attention": "spatial",
                "data.init_args.shards": str(shards),
                "data.init_args.held_out": 0,
                "data.init_args.held_out_world": False,
                **changes,
            }
        )

    assert fit(config("one", **{"data.init_args.batch_size": 4})) == 0
    assert fit(config("accumulated", **{"data.init_args.batch_size": 1, "run.accumulate": 4})) == 0
    for name, devices in (("two", 2), ("four", 4)):
        own = {"data.init_args.batch_size": 4 // devices, "run.devices": devices, "run.strategy": "ddp"}
        run(config(name, **own), tmp_path, forked=4 if name == "four" else 0)
    expected = moments(load(tmp_path / "one" / "step-00000002.ckpt"))
    assert expected["gradients"].dtype == torch.float64
    for name in ("accumulated", "two", "four"):
        for kind, found in moments(load(tmp_path / name / "step-00000002.ckpt")).items():
            worst = float((found - expected[kind]).abs().max() / expected[kind].abs().max())
            assert worst < {"gradients": 1e-12, "weights": 1e-9}[kind], (name, kind)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "buckets"), [("shards", None), ("mixed_shards", BUCKETS)])
def test_world_size_may_change_on_resume(settings, load, tmp_path, request, kind, buckets):
    shards = str(request.getfixturevalue(kind))

    def config(devices: int, steps: int, folder: str):
        return settings(
            **{
                "run.folder": str(tmp_path / folder),
                "run.max_steps": steps,
                "run.devices": devices,
                "run.strategy": "ddp" if devices > 1 else "auto",
                "run.global_batch": 4,
                "data.init_args.shards": shards,
                "data.init_args.buckets": buckets,
                "stage.class_path": "tests.behaviour.training.double_stage.DoubleSeeCoderStage",
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
    assert worst < 1e-9
