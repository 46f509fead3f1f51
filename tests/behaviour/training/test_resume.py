"""A run that is stopped anywhere and started again ends with the weights of one that was not."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback

import train.run.trainer
from data.build import main as build_shards
from seecoder.export.run_folder import is_complete, list_checkpoints
from tests.behaviour.training.noted_order import read_order
from tests.behaviour.training.same_training import assert_equal
from tests.fixtures.training import BUCKETS
from train.cli import main
from train.run.metrics_file import read_metrics

ROOT = Path(__file__).parents[3]


class _Kill(Callback):
    """Breaks off in the middle of a step, as a crash would."""

    def __init__(self, batches: int):
        self.batches = batches

    def on_train_batch_start(self, *_):
        self.batches -= 1
        if self.batches < 0:
            raise KeyboardInterrupt


@pytest.fixture
def killed_after(monkeypatch, fit):
    """Run, but crash before micro-batch number `batches`."""

    def run(batches: int, config: dict) -> None:
        build = train.run.trainer.build_trainer

        def with_crash(*arguments):
            trainer, termination = build(*arguments)
            trainer.callbacks.append(_Kill(batches))
            return trainer, termination

        with monkeypatch.context() as patch:
            patch.setattr(train.run.trainer, "build_trainer", with_crash)
            with pytest.raises((KeyboardInterrupt, SystemExit)):
                fit(config)

    return run


AWARE = {"stage.init_args.encoder.position_aware": True, "run.accumulate": 2, "run.max_steps": 6}


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["shards", "cached_buckets"])
def test_crashes_mid_step_and_mid_accumulation_change_nothing(
    settings, fit, killed_after, load, tmp_path, request, kind
):
    place = {"data.init_args.shards": str(request.getfixturevalue(kind))}
    place |= {"data.init_args.buckets": None if kind == "shards" else BUCKETS, "data.init_args.flip": kind != "shards"}
    assert fit(settings(**AWARE, **place)) == 0
    whole = load(tmp_path / "run" / "step-00000006.ckpt")
    config = settings(**AWARE, **place, **{"run.folder": str(tmp_path / "broken")})
    for batches in (3, 5, 1, 4):  # micro-batches after each start; two make a step, two steps a checkpoint
        killed_after(batches, config)
    assert fit(config) == 0
    assert_equal(whole, load(tmp_path / "broken" / "step-00000006.ckpt"))
    logs = []
    for name in ("run", "broken"):
        with (tmp_path / name / "metrics.csv").open() as file:
            logs.append([row for row in csv.reader(file) if row[1] not in ("images_per_second", "data_wait")])
    assert logs[0] == logs[1]


@pytest.mark.heavy
def test_a_torn_checkpoint_is_passed_over(settings, fit, load, tmp_path):
    assert fit(settings()) == 0
    run = tmp_path / "run"
    whole = load(run / "step-00000006.ckpt")
    newest = run / "step-00000006.ckpt"
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    assert fit(settings()) == 0
    assert_equal(whole, load(newest))


@pytest.mark.heavy
def test_a_torn_checkpoint_does_not_count_as_a_kept_one(settings, fit, load, tmp_path, capsys):
    assert fit(settings()) == 0
    run = tmp_path / "run"
    whole, newest = load(run / "step-00000006.ckpt"), run / "step-00000006.ckpt"
    os.truncate(newest, 1000)
    short = {"run.keep_checkpoints": 1, "run.checkpoint_every": 1, "run.max_minutes": 1e-9, "run.keep_best": None}
    assert fit(settings(**short)) == 0
    assert [(step, is_complete(path)) for step, path in list_checkpoints(run)] == [(5, True)]
    assert (run / "step-00000006.ckpt.broken").stat().st_size == 1000
    assert "renamed to step-00000006.ckpt.broken" in capsys.readouterr().out
    assert fit(settings()) == 0
    assert_equal(whole, load(newest))


@pytest.mark.heavy
def test_no_checkpoint_is_from_within_a_row_of_skipped_steps(settings, fit, load, monkeypatch, tmp_path):
    from train.stages.seecoder import SeeCoderStage

    original, bad = SeeCoderStage.loss, {1, 3, 4, 5, 6}
    monkeypatch.setattr(
        SeeCoderStage,
        "loss",
        lambda stage, batch: original(stage, batch) * (float("nan") if stage.global_step in bad else 1),
    )
    guard = {"max_skipped_in_a_row": 2}
    config = settings(**{"run.checkpoint_every": 2, "run.max_steps": 9, "stage.init_args.guard": guard})
    assert fit(config) == 1
    run = tmp_path / "run"
    steps = [step for step, _ in list_checkpoints(run)]
    assert steps == [3], "that of step 2 waited for the next good one, and none came since"
    assert load(run / "step-00000003.ckpt")["guard"]["skipped_in_a_row"] == 0
    evaluated = [step for step, _ in read_metrics(run / "metrics.csv")["held_out_loss"]]
    assert evaluated == [3], "where there is a checkpoint, so that it may be the best"
    bad.clear()
    assert fit(config) == 0


@pytest.mark.heavy
def test_a_metric_that_is_not_there_is_said_once(settings, fit, capsys):
    assert fit(settings(**{"run.keep_best": "held_out_los"})) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "held_out_los`" in line]
    assert len(said) == 1
    assert "held_out_loss," in said[0], "with those that there are"


@pytest.mark.heavy
def test_a_killed_run_has_its_card_and_configuration(settings, killed_after, tmp_path):
    killed_after(5, settings(**AWARE))
    run = tmp_path / "run"
    assert "| steps | 2 of 6 |" in (run / "README.md").read_text()
    assert yaml.safe_load((run / "config.yaml").read_text())["run"]["max_steps"] == 6
    (run / "config.yaml").write_text("run: {")
    (run / "best.json").write_text("{")
    assert main(["report", str(run)]) == 0
    assert "is damaged" in (run / "report.html").read_text()
    killed_after(1, settings(**AWARE))
    assert yaml.safe_load((run / "config.yaml").read_text())["run"]["max_steps"] == 6


@pytest.mark.heavy
def test_a_full_disk_at_the_start_costs_notes_not_the_run(settings, fit, monkeypatch, capsys, tmp_path):
    import train.run.provenance

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train.run.provenance, "write_text", full)
    assert fit(settings()) == 0
    said = capsys.readouterr().out
    assert "config.yaml and run.json NOT WRITTEN: [Errno 28] No space left on device" in said
    assert is_complete(tmp_path / "run" / "step-00000006.ckpt")


@pytest.mark.heavy
def test_a_finished_run_is_left_alone_and_can_be_extended(settings, fit, load, tmp_path, capsys):
    assert fit(settings(**{"run.max_steps": 2})) == 0
    capsys.readouterr()
    assert fit(settings(**{"run.max_steps": 2})) == 0
    assert "finished" in capsys.readouterr().out
    assert fit(settings(**{"run.max_steps": 4})) == 0
    assert "changed: run.max_steps: 2 -> 4" in capsys.readouterr().out
    assert fit(settings(**{"run.max_steps": 4, "run.folder": str(tmp_path / "at_once")})) == 0
    assert_equal(load(tmp_path / "run" / "step-00000004.ckpt"), load(tmp_path / "at_once" / "step-00000004.ckpt"))


@pytest.mark.heavy
def test_a_fresh_start_over_an_old_run_is_refused(settings, fit, capsys):
    assert fit(settings(**{"run.max_steps": 2})) == 0
    assert fit(settings(**{"run.max_steps": 2}), "--no_resume") == 2
    assert "earlier run" in capsys.readouterr().err


def test_another_global_batch_goes_on_without_doubling_or_dropping_samples(settings, fit, tmp_path):
    """24 samples an epoch; 3 steps of 2, then 3 of 6, are its whole."""
    config = settings(**{"data.class_path": "tests.behaviour.training.noted_order.NotedPictures", "run.max_steps": 3})
    assert fit(config) == 0
    larger = {"run.max_steps": 6, "data.init_args.batch_size": 3, "run.accumulate": 2}
    assert fit(settings(**{"data.class_path": config["data"]["class_path"], **larger})) == 0
    (steps,) = read_order(tmp_path / "run")
    used = [tuple(key) for batches in steps.values() for batch in batches for key in batch]
    assert len(used) == 24
    assert sorted(used) == [(0, sample) for sample in range(24)]


def test_grown_shards_are_refused_with_numbers_or_begin_an_epoch(settings, fit, capsys, tmp_path):
    def grow(count: int) -> dict:
        folder = tmp_path / f"shards-{count}"
        words = ["world", str(folder), "--count", str(count), "--size", "32", "--samples-per-shard", "8"]
        assert build_shards(words) == 0
        return settings(**{"data.init_args.shards": str(folder), "run.max_steps": 2 + count // 16})

    assert fit(grow(16)) == 0
    grown = grow(32)
    capsys.readouterr()
    assert fit(grown) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for words in ("samples: 16 there, 32 now", "shards: 2 there, 4 now", "6 of the 16 samples of epoch 0"):
        assert words in line
    assert fit(grown, "--run.changed_order", "new_epoch") == 0
    assert "epoch 1 begins here" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "value"), [("num_local_queries", 5), ("query_layers", 6)])
def test_another_encoder_is_refused_by_the_setting_that_differs(settings, fit, capsys, name, value):
    assert fit(settings(**{"run.max_steps": 1})) == 0
    capsys.readouterr()
    assert fit(settings(**{"run.max_steps": 2, f"stage.init_args.encoder.{name}": value})) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"stage.init_args.encoder.{name}: 3 -> {value}" in line
    assert "`checkpoint` does not fit SeeCoderStage: " in line


def test_a_checkpoint_that_was_copied_alone_is_continued(settings, fit, capsys, tmp_path):
    assert fit(settings(**{"run.max_steps": 2})) == 0
    (tmp_path / "run" / "step-00000002.ckpt.sha256").unlink()
    assert fit(settings(**{"run.max_steps": 3})) == 0
    assert "continues from" in capsys.readouterr().out


def test_an_interrupt_saves_once_says_how_to_go_on_and_exits_130(settings, fit, monkeypatch, capfd, tmp_path):
    from train.stages.seecoder import SeeCoderStage

    original = SeeCoderStage.loss

    def loss_with_signal(self, batch):
        if self.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch)

    monkeypatch.setattr(SeeCoderStage, "loss", loss_with_signal)
    assert fit(settings(**{"run.checkpoint_every": 100})) == 130
    assert [step for step, _ in list_checkpoints(tmp_path / "run")] == [3]
    said = capfd.readouterr()
    assert "will save after this step" in said.err
    assert "stopped at step 3 of 6; the same command continues" in said.out


@pytest.mark.heavy
def test_a_new_learning_rate_takes_effect(settings, fit, tmp_path):
    assert fit(settings(**{"run.max_steps": 2})) == 0
    changes = (
        "--run.max_steps",
        "4",
        "--stage.init_args.optimizer.lr",
        "0.25",
        "--stage.init_args.optimizer.warmup_steps",
        "0",
    )
    assert fit(settings(), *changes) == 0
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rates = {int(step): float(value) for step, name, value in list(csv.reader(file))[1:] if name == "learning_rate"}
    assert rates == {1: 5e-4, 2: 1e-3, 3: 0.25, 4: 0.25}
    checkpoint = torch.load(tmp_path / "run" / "step-00000004.ckpt", weights_only=True)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == 0.25


@pytest.mark.heavy
def test_old_checkpoints_are_pruned_and_milestones_stay(settings, fit, tmp_path):
    changes = {"run.keep_checkpoints": 1, "run.keep_steps": [1, 3], "run.max_steps": 6, "run.keep_best": None}
    assert fit(settings(**changes)) == 0
    assert [step for step, _ in list_checkpoints(tmp_path / "run")] == [6, 3, 1]


@pytest.mark.heavy
def test_sigterm_saves_once_and_exits_143(settings, fit, monkeypatch, load, tmp_path):
    config = settings(**{"run.max_steps": 6, "run.checkpoint_every": 100, "run.folder": str(tmp_path / "stopped")})
    from train.stages.seecoder import SeeCoderStage

    original = SeeCoderStage.loss

    def loss_with_signal(self, batch):
        if self.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(SeeCoderStage, "loss", loss_with_signal)
        assert fit(config) == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert [step for step, _ in list_checkpoints(tmp_path / "stopped")] == [3]
    assert fit(config) == 0
    assert fit(settings(**{"run.max_steps": 6})) == 0
    assert_equal(load(tmp_path / "stopped" / "step-00000006.ckpt"), load(tmp_path / "run" / "step-00000006.ckpt"))


def test_a_time_budget_stops_cleanly(settings, fit, tmp_path):
    assert fit(settings(**{"run.max_minutes": 1e-9, "run.checkpoint_every": 100})) == 0
    assert [step for step, _ in list_checkpoints(tmp_path / "run")] == [1]


@pytest.mark.heavy
def test_a_disk_that_is_full_for_a_while_costs_a_checkpoint_and_no_more(settings, fit, monkeypatch, capsys, tmp_path):
    from train.stages.seecoder import SeeCoderStage

    original, sync, full = SeeCoderStage.loss, os.fsync, []

    def loss(self, batch):
        full[:] = [1] if self.global_step in (2, 3) else []
        return original(self, batch)

    def fsync(file):
        if full:
            raise OSError(28, "No space left on device")
        sync(file)

    monkeypatch.setattr(SeeCoderStage, "loss", loss)
    monkeypatch.setattr(os, "fsync", fsync)
    assert fit(settings(**{"run.max_steps": 6, "stage.init_args.export_encoder": True})) == 0
    assert [step for step, _ in list_checkpoints(tmp_path / "run")] == [6, 2]
    shown = capsys.readouterr().out
    assert "NO CHECKPOINT at step 4" in shown
    assert "NO EXPORT at step 4" in shown
    with (tmp_path / "run" / "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["metric"] == "loss"]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_what_a_killed_process_left_half_written_is_removed(settings, fit, tmp_path):
    (tmp_path / "run").mkdir()
    left_behind = tmp_path / "run" / ".step-00000009.ckpt.0123abcd.partial"
    left_behind.write_bytes(b"half")
    lonely = tmp_path / "run" / "step-00000009.ckpt.sha256"  # killed before the checkpoint got its name
    lonely.write_text("0" * 64)
    assert fit(settings(**{"run.max_steps": 1})) == 0
    assert not left_behind.exists()
    assert not lonely.exists()
    assert (tmp_path / "run" / "step-00000001.ckpt.sha256").exists()


@pytest.mark.heavy
def test_sigterm_to_the_whole_group_with_readers_saves_once_and_exits_143(settings, load, tmp_path):
    """Launchers send it to every process that a training has, those that read included."""
    command = _command(settings(**{"run.max_steps": 10_000, "data.init_args.num_workers": 2}), tmp_path)
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith("step 3"))
        os.killpg(process.pid, signal.SIGTERM)
        _, error = process.communicate(timeout=120)
    assert process.returncode == 143, error[-2000:]
    assert list_checkpoints(tmp_path / "run")


def _command(config: dict, folder: Path) -> list[str]:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return [sys.executable, "-m", "train", "fit", "--config", str(path)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_9_at_twenty_random_moments(settings, fit, load, tmp_path):
    """Two micro-batches a step, a checkpoint every two steps, six steps an epoch: a moment is within some of them."""
    steady = {"run.max_steps": 400, "run.accumulate": 2, "run.threads": 1}  # sums depend on the number of threads
    assert fit(settings(**steady)) == 0
    whole = load(tmp_path / "run" / "step-00000400.ckpt")
    command = _command(settings(**steady, **{"run.folder": str(tmp_path / "killed")}), tmp_path)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            next(line for line in process.stdout if line.startswith("step"))
            time.sleep(float(torch.rand(1, generator=generator)) * 0.3)
            process.kill()
        assert process.returncode == -signal.SIGKILL
    assert subprocess.run(command, cwd=ROOT, check=False, capture_output=True).returncode == 0
    assert_equal(whole, load(tmp_path / "killed" / "step-00000400.ckpt"))
