"""Two processes on this machine are one process with twice the batch."""

import multiprocessing
import os
import socket
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
import yaml

from data.build import main as build
from tests.fixtures.training import BUCKETS
from train.cli import main

ROOT = Path(__file__).parents[3]
FORKS = "ignore:This process.*use of fork:DeprecationWarning"


def process(rank: int, processes: int, port: int, config: Path, log: Path) -> None:
    """One of the processes that a launcher starts, up to its end."""
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
    }
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    with log.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        code = main(["fit", "--config", str(config)])
    os._exit(code)


def launch(config: dict, folder: Path, processes: int) -> None:
    """Train in processes of a launcher that are forks of this one, because imports take each ten seconds."""
    path, context = folder / f"{Path(config['run']['folder']).name}.yaml", multiprocessing.get_context("fork")
    path.write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [path.with_suffix(f".{rank}.log") for rank in range(processes)]
    children = [
        context.Process(target=process, args=(rank, processes, port, path, log)) for rank, log in enumerate(logs)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * processes, [log.read_text()[-2000:] for log in logs]


def run(config: dict, folder: Path) -> None:
    """Run the command, which starts its other processes itself."""
    path = folder / f"{Path(config['run']['folder']).name}.yaml"
    path.write_text(yaml.safe_dump(config))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "train", "fit", "--config", str(path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]


def moments(checkpoint: dict) -> dict[str, torch.Tensor]:
    """AdamW's first moments, which are sums of gradients, and the weights."""
    states = checkpoint["optimizer_states"][0]["state"]
    gradients = torch.cat([state["exp_avg"].flatten() for _, state in sorted(states.items())])
    weights = [value.flatten() for value in checkpoint["state_dict"].values() if value.is_floating_point()]
    return {"gradients": gradients, "weights": torch.cat(weights)}


@pytest.mark.heavy
@pytest.mark.filterwarnings(FORKS)
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
    run(config("two", **{"data.init_args.batch_size": 2, "run.devices": 2, "run.strategy": "ddp"}), tmp_path)
    launch(config("four", **{"data.init_args.batch_size": 1, "run.devices": 4, "run.strategy": "ddp"}), tmp_path, 4)
    expected = moments(load(tmp_path / "one" / "step-00000002.ckpt"))
    assert expected["gradients"].dtype == torch.float64
    for name in ("accumulated", "two", "four"):
        for kind, found in moments(load(tmp_path / name / "step-00000002.ckpt")).items():
            worst = float((found - expected[kind]).abs().max() / expected[kind].abs().max())
            assert worst < {"gradients": 1e-12, "weights": 1e-9}[kind], (name, kind)


@pytest.mark.heavy
@pytest.mark.filterwarnings(FORKS)
@pytest.mark.parametrize(("kind", "buckets"), [("shards", None), ("mixed_shards", BUCKETS)])
def test_world_size_may_change_on_resume(settings, fit, load, tmp_path, request, kind, buckets):
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

    launch(config(2, 2, "changing"), tmp_path, 2)
    assert fit(config(1, 4, "changing")) == 0
    launch(config(2, 6, "changing"), tmp_path, 2)
    assert fit(config(1, 6, "steady")) == 0
    ours, theirs = (load(tmp_path / name / "step-00000006.ckpt")["state_dict"] for name in ("changing", "steady"))
    worst = max(float((ours[name] - value).abs().max()) for name, value in theirs.items() if value.is_floating_point())
    assert worst < 1e-9
