"""Under SLURM a warning of either kind ends in one checkpoint of ours, and in one requeue, by the launch file."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from seecoder.export.run_folder import is_complete, list_checkpoints
from tests.behaviour.training.same_training import assert_equal
from train.sources.shard_data import ShardPictures
from train.stages.seecoder import SeeCoderStage

ROOT = Path(__file__).parents[3]
# What SLURM tells a task of one task.
TASK = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
JOB = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_NAME": "seecoder",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_NODELIST": "localhost",
    "SLURM_SUBMIT_DIR": str(ROOT),
}
STEADY = {
    "run.checkpoint_every": 100,
    "run.threads": 1,
    "data.init_args.held_out": 0,
    "data.init_args.held_out_world": False,
}
SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)


@pytest.fixture
def commands(tmp_path) -> Path:
    """A folder with SLURM's commands: both note that they were called, and `srun` starts the one task."""
    folder = tmp_path / "bin"
    folder.mkdir()
    note = f'echo "$(basename "$0") $*" >> {tmp_path}/calls.txt'
    task = " ".join(f"{name}={value}" for name, value in TASK.items())
    (folder / "scontrol").write_text(f"#!/bin/sh\n{note}\n")
    (folder / "srun").write_text(f'#!/bin/sh\n{note}\necho $$ > {tmp_path}/pid\nshift\nexec env {task} "$@"\n')
    for name in ("scontrol", "srun"):
        (folder / name).chmod(0o755)
    return folder


def called(tmp_path: Path) -> list[str]:
    """Calls so far: the command and its first argument."""
    calls = tmp_path / "calls.txt"
    return [" ".join(line.split()[:3]) for line in calls.read_text().splitlines()] if calls.exists() else []


@pytest.fixture
def under_slurm(monkeypatch, commands):
    """This process is a task of a job."""
    for name, value in {**JOB, **TASK, "PATH": f"{commands}:{os.environ['PATH']}"}.items():
        monkeypatch.setenv(name, value)


def assert_saved_once(folder: Path, step: int) -> None:
    """There is one checkpoint, which is complete, and none of another kind."""
    ((found, path),) = list_checkpoints(folder)
    assert found == step
    assert is_complete(path)
    assert {path.name for path in folder.glob("*ckpt*")} == {path.name, f"{path.name}.sha256"}


@pytest.mark.heavy
@pytest.mark.usefixtures("under_slurm")
@SIGNALS
@pytest.mark.parametrize(("place", "step"), [(SeeCoderStage.loss, 3), (ShardPictures.train_dataloader, 1)])
def test_a_warning_saves_once_and_asks_for_no_requeue(settings, fit, load, monkeypatch, tmp_path, number, place, step):
    steady = {**STEADY, "run.max_steps": 4}
    config = settings(**steady, **{"run.folder": str(tmp_path / "stopped")})
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]

    def warned(self, *arguments):
        if self.trainer.global_step == step - 1:
            os.kill(os.getpid(), number)
        return place(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(SeeCoderStage if place is SeeCoderStage.loss else ShardPictures, place.__name__, warned)
        assert fit(config) == 143
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before
    assert_saved_once(tmp_path / "stopped", step)
    assert fit(config) == 0
    assert fit(settings(**steady)) == 0
    assert_equal(*(load(tmp_path / name / "step-00000004.ckpt") for name in ("stopped", "run")))
    assert called(tmp_path) == []


@pytest.mark.slow
@SIGNALS
def test_the_launch_file_puts_the_job_back_once_and_goes_on(settings, fit, load, commands, tmp_path, number):
    steady = {**STEADY, "run.max_steps": 60}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings(**steady, **{"run.folder": str(tmp_path / "stopped")})))
    places = [str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]
    with subprocess.Popen(
        [ROOT / "scripts" / "launch" / "slurm.sbatch", path],
        env={**os.environ, **JOB, "PATH": ":".join(places)},
        stdout=subprocess.PIPE,
        text=True,
    ) as job:
        assert job.stdout is not None
        next(line for line in job.stdout if line.startswith("step 3"))
        os.kill(int((tmp_path / "pid").read_text()), number)
        job.communicate(timeout=120)
    assert job.returncode == 0
    assert called(tmp_path) == ["srun --kill-on-bad-exit=1 python", "scontrol requeue 17"]
    ((step, _),) = list_checkpoints(tmp_path / "stopped")
    assert 3 <= step < 60
    assert_saved_once(tmp_path / "stopped", step)
    again = [ROOT / "scripts" / "launch" / "slurm.sbatch", path]
    assert subprocess.run(again, env={**os.environ, **JOB, "PATH": ":".join(places)}, check=False).returncode == 0
    assert called(tmp_path)[2:] == ["srun --kill-on-bad-exit=1 python"]
    assert fit(settings(**steady)) == 0
    assert_equal(*(load(tmp_path / name / "step-00000060.ckpt") for name in ("stopped", "run")))
