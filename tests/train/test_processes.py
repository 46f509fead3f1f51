"""Two processes over gloo, started as a launcher would: what one of them meets, all of them act upon."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
import yaml

from tests.train.same_training import assert_equal
from train.checkpoints import list_checkpoints
from train.records import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # each start of two processes takes some ten seconds
ROOT = Path(__file__).parents[2]

# Run in each process in place of `python -m train`: spoils losses as the environment says, and tells when steps begin.
DRIVER = """
import json, os, sys, time
import torch
from train.cli import main
from train.seecoder import SeeCoderStage

original = SeeCoderStage.loss
spoil = json.loads(os.environ.get("SPOIL", "{}"))

def loss(stage, batch):
    found = original(stage, batch)
    print("begins", stage.global_step, flush=True)
    if os.environ["RANK"] == str(spoil.get("rank")) and stage.global_step in spoil["steps"]:
        kind = spoil["kind"]
        if kind == "sleep":
            time.sleep(0.5)
            return found
        if kind == "loss":  # infinite, with gradients of zero
            return found + torch.full_like(found, float("inf"))
        return found * (float("nan") if kind == "nan" else 1e6)
    return found

SeeCoderStage.loss = loss
sys.exit(main())
"""


@pytest.fixture
def start(tmp_path):
    """Start both processes on a configuration; they end with the test."""
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    with ExitStack() as stack:

        def begin(config: dict, **environment: str) -> list[subprocess.Popen[str]]:
            path = tmp_path / "config.yaml"
            path.write_text(yaml.safe_dump(config))
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            common = {
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": "lo",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2",
                "GROUP_RANK": "0",
                "TORCHELASTIC_RUN_ID": "test",
                **environment,
            }
            command = [sys.executable, str(driver), "fit", "--config", str(path)]
            return [
                stack.enter_context(
                    _ending(
                        subprocess.Popen(
                            command,
                            cwd=ROOT,
                            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                            stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE,
                            text=True,
                        )
                    )
                )
                for rank in range(2)
            ]

        yield begin


@contextmanager
def _ending(process: subprocess.Popen[str]):
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def pair(settings):
    """A configuration for two processes."""

    def make(**changes):
        plain = {"data.init_args.held_out": 0, "data.init_args.held_out_world": False}
        return settings(**{"run.devices": 2, "run.strategy": "ddp", "run.threads": 1, **plain, **changes})

    return make


def wait_for(process: subprocess.Popen[str], beginning: str) -> None:
    assert process.stdout is not None
    next(line for line in process.stdout if line.startswith(beginning))


def finish(processes: list[subprocess.Popen[str]]) -> list[int]:
    results = [process.communicate(timeout=800) for process in processes]
    codes = [process.returncode for process in processes]
    if any(code not in (0, 1, 143) for code in codes):
        pytest.fail("\n".join(error[-1500:] for _, error in results))
    return codes


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("kind", ["nan", "loss", "spike"])
def test_what_spoils_one_process_is_skipped_in_both(pair, start, load, tmp_path, rank, kind):
    guard = {"max_norm_ratio": 100.0 if kind == "spike" else None}
    config = pair(**{"run.max_steps": 4, "stage.init_args.guard": guard})
    assert finish(start(config, SPOIL=json.dumps({"rank": rank, "steps": [2], "kind": kind}))) == [0, 0]
    rows = [json.loads(line) for line in (tmp_path / "run" / "skipped_steps.jsonl").read_text().splitlines()]
    assert sorted((row["step"], row["rank"]) for row in rows) == [(2, 0), (2, 1)]
    named = [tuple(sample) for row in rows for sample in row["samples"]]
    assert len(set(named)) == 4  # both processes' samples of that step
    checkpoint = load(tmp_path / "run" / "step-00000004.ckpt")
    assert checkpoint["guard"]["skipped"] == 1
    assert all(bool(value.isfinite().all()) for value in checkpoint["state_dict"].values())
    steps = {int(state["step"]) for state in checkpoint["optimizer_states"][0]["state"].values()}
    assert steps == {3}  # AdamW knows of three


def test_the_log_names_the_slowest_process(pair, start, tmp_path):
    config = pair(**{"run.max_steps": 4, "run.log_every": 2})
    spoil = {"rank": 1, "steps": [0, 1, 2, 3], "kind": "sleep"}
    assert finish(start(config, SPOIL=json.dumps(spoil))) == [0, 0]
    figures = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [value for _, value in figures["slowest_process"]] == [1, 1]
    assert min(value for _, value in figures["slowest_process_times"]) > 2


def test_a_process_that_stays_spoilt_stops_both_with_the_checkpoint_from_before(pair, start, tmp_path):
    config = pair(**{"run.max_steps": 6, "stage.init_args.guard": {"max_skipped_in_a_row": 1}})
    spoil = {"rank": 1, "steps": [2, 3, 4, 5], "kind": "nan"}
    assert finish(start(config, SPOIL=json.dumps(spoil))) == [1, 1]
    assert list_checkpoints(tmp_path / "run")[0][0] == 2


@pytest.mark.parametrize("told", [(0,), (1,), (0, 1, 1)], ids=["first", "second", "both, twice"])
def test_sigterm_to_any_process_saves_once_ends_both_with_143_and_continues_exactly(pair, start, load, tmp_path, told):
    config = pair(**{"run.max_steps": 20, "run.checkpoint_every": 100})
    processes = start(config)
    for process in processes:
        wait_for(process, "begins 3")
    for rank in told:
        processes[rank].send_signal(signal.SIGTERM)
    assert finish(processes) == [143, 143]
    ((step, _),) = list_checkpoints(tmp_path / "run")
    assert 3 < step < 20
    assert finish(start(config)) == [0, 0]
    assert finish(start({**config, "run": {**config["run"], "folder": str(tmp_path / "whole")}})) == [0, 0]
    ours, theirs = (load(tmp_path / name / "step-00000020.ckpt")["state_dict"] for name in ("run", "whole"))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.timeout(3600)
def test_kill_9_of_one_or_both_at_twenty_random_moments(pair, start, load, tmp_path):
    config = pair(**{"run.max_steps": 400, "run.accumulate": 2})
    generator = torch.Generator().manual_seed(0)
    for moment in range(20):
        processes = start(config)
        wait_for(processes[0], "begins")
        time.sleep(float(torch.rand(1, generator=generator)) * 0.5)
        killed = ((0,), (1,), (0, 1))[moment % 3]
        for rank in killed:
            processes[rank].kill()
        for rank, process in enumerate(processes):  # one that is left alone ends by itself
            process.communicate(timeout=120)
            assert (process.returncode == -signal.SIGKILL) if rank in killed else process.returncode
    assert finish(start(config)) == [0, 0]
    assert finish(start({**config, "run": {**config["run"], "folder": str(tmp_path / "whole")}})) == [0, 0]
    assert_equal(*(load(tmp_path / name / "step-00000400.ckpt") for name in ("run", "whole")))
