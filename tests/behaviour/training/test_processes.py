"""Two processes over gloo, started as a launcher would: what one of them meets, all of them act upon."""

import json
import math
import os
import shutil
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

from seecoder.export.run_folder import is_complete, list_checkpoints
from tests.behaviour.training.killing import files_of
from tests.behaviour.training.noted_order import assert_same_order, read_order
from tests.behaviour.training.same_training import assert_equal, flat
from train.run.metrics_file import read_metrics

NOTED = "tests.behaviour.training.noted_order.NotedPictures"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # each start of two processes takes some ten seconds
ROOT = Path(__file__).parents[3]

# Run in each process in place of `python -m train`: spoils losses or dies as the environment says, and tells when
# steps begin.
DRIVER = """
import json, os, sys, time
import torch
from tests.behaviour.training.killing import arrange
from tests.fixtures.cpu_zero import train_on_cpus
from train.cli import main
from train.stages.seecoder import SeeCoderStage

train_on_cpus()
if "KILL" in os.environ:
    arrange(*json.loads(os.environ["KILL"]))
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


def test_a_nan_of_one_process_names_the_samples_of_both(pair, start, load, tmp_path):
    kept = {"run.checkpoint_every": 1, "run.keep_steps": [3]}  # else the one of a skipped step waits for the next
    config = pair(**{"run.max_steps": 4, "run.accumulate": 2, "data.class_path": NOTED, **kept})
    assert finish(start(config, SPOIL=json.dumps({"rank": 1, "steps": [2], "kind": "nan"}))) == [0, 0]
    rows = [json.loads(line) for line in (tmp_path / "run" / "skipped_steps.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 2]
    by_rank = {row["rank"]: row for row in rows}
    assert by_rank.keys() == {0, 1}
    read = {place: keys for process in read_order(tmp_path / "run") for place, keys in process.items()}
    for rank, row in by_rank.items():
        assert row["samples"] == [key for micro_batch in read[2, rank] for key in micro_batch]
        assert row["gradient_norm"] == "nan"  # summed over both
        assert math.isnan(float(row["loss"])) == (rank == 1)
    before, after = (load(tmp_path / "run" / f"step-0000000{step}.ckpt") for step in (2, 3))
    assert after["guard"] == {**before["guard"], "skipped": 1, "skipped_in_a_row": 1}
    ours, theirs = (flat({key: found[key] for key in ("state_dict", "optimizer_states")}) for found in (before, after))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items() if isinstance(value, torch.Tensor))


def test_the_log_names_the_slowest_process(pair, start, tmp_path):
    config = pair(**{"run.max_steps": 4, "run.log_every": 2})
    spoil = {"rank": 1, "steps": [0, 1, 2, 3], "kind": "sleep"}
    assert finish(start(config, SPOIL=json.dumps(spoil))) == [0, 0]
    figures = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [value for _, value in figures["slowest_process"]] == [1, 1]
    assert min(value for _, value in figures["slowest_process_times"]) > 2


def test_the_log_of_two_processes_is_that_of_one_with_their_micro_batches(pair, start, shards, fit, tmp_path):
    """In float64; micro-batches that both read are the same, and one process takes two of them a step."""
    damaged = shutil.copytree(shards, tmp_path / "damaged")
    victim = sorted(damaged.glob("*.tar"))[1]
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    steady = {"stage.class_path": "tests.behaviour.training.double_stage.DoubleSeeCoderStage", "run.log_every": 3}
    steady |= {"stage.init_args.encoder.decoder_dropout": 0.0, "data.init_args.shards": str(damaged)}
    steady |= {"stage.init_args.encoder.decoder_attention": "spatial", "data.init_args.ceiling": 1.0}
    one = {"run.devices": 1, "run.strategy": "auto", "run.accumulate": 2, "run.folder": str(tmp_path / "one")}
    assert fit(pair(**steady, **one, **{"run.max_steps": 12})) == 0
    for steps in (6, 12):  # started twice
        assert finish(start(pair(**steady, **{"run.max_steps": steps}))) == [0, 0]
    found, expected = (read_metrics(tmp_path / name / "metrics.csv") for name in ("run", "one"))
    shared = {"loss", "gradient_norm", "learning_rate", "skipped_steps", "skipped_samples"}
    shared |= {name for name in expected if name.startswith("loss_level_")}
    assert len(shared) == 9
    assert [step for step, _ in expected["skipped_samples"]] == [3, 6, 9, 12]
    assert expected["skipped_samples"][-1][1] > expected["skipped_samples"][1][1] > 0  # more after the second start
    for name in shared:
        assert found[name] == [(step, pytest.approx(value, rel=1e-5)) for step, value in expected[name]], name


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


def end_killed(processes: list[subprocess.Popen[str]], killed: set[int]) -> None:
    """Of two processes these were killed; one that is left alone ends by itself."""
    for process in processes:
        process.communicate(timeout=120)
    codes = [process.returncode for process in processes]
    assert {rank for rank, code in enumerate(codes) if code == -signal.SIGKILL} == killed
    assert 0 not in codes


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_2"])
def test_kill_9_while_a_checkpoint_is_gathered_written_and_named(pair, start, load, tmp_path, strategy):
    config = pair(**{"run.max_steps": 8, "run.strategy": strategy, "data.class_path": NOTED})
    folder = tmp_path / "run"
    moments: list[
        tuple[set[int], list, list[int], set[str]]
    ] = [  # who, when, complete ones then, files of the next then
        ({0}, ["write", 4, 0.5], [2], {".ckpt"}),
        ({0}, ["rename", 6, "ckpt", False], [4, 2], {".ckpt", "ckpt.sha256"}),
    ]
    if strategy != "ddp":  # each process has a share of AdamW's state
        moments.insert(0, ({1}, ["gather", 2, 1], [], set()))
    for who, moment, complete, files in moments:
        end_killed(start(config, KILL=json.dumps(moment)), who)
        assert [step for step, path in list_checkpoints(folder) if is_complete(path)] == complete
        assert files_of(folder, moment[1]) == files
    assert finish(start(config)) == [0, 0]
    assert finish(start({**config, "run": {**config["run"], "folder": str(tmp_path / "whole")}})) == [0, 0]
    assert_equal(*(load(tmp_path / name / "step-00000008.ckpt") for name in ("run", "whole")))
    assert_same_order(folder, tmp_path / "whole", 8, ranks=2)
    assert {path.name for path in folder.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}


@pytest.mark.timeout(1800)
def test_kill_9_under_zero_at_random_moments(pair, start, load, tmp_path):
    config = pair(**{"run.max_steps": 60, "run.accumulate": 2, "run.strategy": "deepspeed_stage_2"})
    config["data"]["class_path"] = NOTED
    generator = torch.Generator().manual_seed(0)
    for killed in ({0}, {1}, {0, 1}, {0}):
        processes = start(config)
        wait_for(processes[0], "begins")
        time.sleep(float(torch.rand(1, generator=generator)) * 2)
        for rank in killed:
            processes[rank].kill()
        end_killed(processes, killed)
    assert finish(start(config)) == [0, 0]
    assert finish(start({**config, "run": {**config["run"], "folder": str(tmp_path / "whole")}})) == [0, 0]
    assert_equal(*(load(tmp_path / name / "step-00000060.ckpt") for name in ("run", "whole")))
    assert_same_order(tmp_path / "run", tmp_path / "whole", 60, ranks=2)
