"""As many processes as the run has, and one run in a folder."""

import multiprocessing
import os
import signal
import socket
from pathlib import Path

import pytest

from train.run.launched import check_launcher, is_first_process, only_run_in
from train.settings import RunSettings

FORK = multiprocessing.get_context("fork")
TORCHRUN = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SLURM = {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "train"}
MPIRUN = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch):
    """Set variables as a launcher does."""

    def put(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        (TORCHRUN, r"`run.devices`=1 .* must be the 2 processes that torchrun .* --run.devices 2 --run.num_nodes 1"),
        (SLURM, r"must be the 4 processes that SLURM .*, 2 on this node.* --run.devices 2 --run.num_nodes 2"),
        (MPIRUN, r"must be the 2 processes that mpirun .* --run.devices 2"),
        ({"PMI_SIZE": "3", "PMI_RANK": "0"}, r"must be the 3 processes that mpiexec .* --run.devices 3"),
    ],
)
def test_another_number_of_processes_is_refused_with_both_numbers(launch, variables, named):
    launch(variables)
    with pytest.raises(ValueError, match=named):
        check_launcher(RunSettings("run", 1))


@pytest.mark.parametrize(
    ("variables", "devices", "nodes"),
    [({}, 4, 2), (TORCHRUN, 2, 1), (SLURM, 2, 2), (SLURM | {"SLURM_JOB_NAME": "bash"}, 1, 1), (SLURM | TORCHRUN, 2, 1)],
)
def test_the_runs_own_number_passes(launch, variables, devices, nodes):
    launch(variables)
    check_launcher(RunSettings("run", 1, devices=devices, num_nodes=nodes))


def test_tasks_of_slurm_that_srun_did_not_start_are_refused_where_lightning_would_wait_for_them(launch):
    launch({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train"})
    with pytest.raises(ValueError, match="`SLURM_NTASKS`=4 must be left out without srun"):
        check_launcher(RunSettings("run", 1))
    launch({"SLURM_JOB_NAME": "interactive"})
    check_launcher(RunSettings("run", 1))


@pytest.mark.parametrize(("name", "rank", "count"), [("RANK", 2, 2), ("LOCAL_RANK", 1, 1)])
def test_a_rank_that_an_earlier_launch_left_is_refused(launch, name, rank, count):
    launch({name: str(rank)})
    with pytest.raises(ValueError, match=f"`{name}`={rank} must be below {count}"):
        check_launcher(RunSettings("run", 1, num_nodes=2))
    launch({name: str(rank - 1)})
    check_launcher(RunSettings("run", 1, num_nodes=2))


def test_the_same_processes_on_other_nodes_are_refused(launch):
    launch(TORCHRUN)
    with pytest.raises(ValueError, match="2 on this node"):
        check_launcher(RunSettings("run", 1, devices=1, num_nodes=2))


def test_mpi_without_mpi4py_is_refused(launch, monkeypatch):
    launch(MPIRUN)
    monkeypatch.setattr("train.run.launched.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="mpi4py"):
        check_launcher(RunSettings("run", 1, devices=2))


@pytest.mark.parametrize(
    ("variables", "is_first"),
    [
        ({}, True),
        (TORCHRUN, False),
        (TORCHRUN | {"RANK": "0"}, True),
        (SLURM, False),
        (MPIRUN, True),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, False),  # a process that Lightning has started
        ({"NODE_RANK": "1"}, False),
    ],
)
def test_one_process_speaks_for_the_run(launch, variables, is_first):
    launch(variables)
    assert is_first_process() is is_first


def _hold(folder: Path, ready) -> None:
    with only_run_in(folder):
        ready.send(os.getpid())
        signal.pause()


@pytest.fixture
def holder(tmp_path: Path):
    """A process that trains in the folder; it is killed at the end."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=_hold, args=(tmp_path / "run", theirs))
    process.start()
    assert ours.recv() == process.pid
    yield process
    process.kill()
    process.join()


def test_a_second_run_is_refused_by_machine_and_number_of_the_first(holder, tmp_path, monkeypatch):
    monkeypatch.setattr("train.run.launched._PATIENCE", 0.0)
    named = f"Another process is training in .*: process {holder.pid} on {socket.gethostname()}"
    with pytest.raises(FileExistsError, match=named), only_run_in(tmp_path / "run"):
        pass
    assert (tmp_path / "run" / ".training.holder").exists(), "of the first, which goes on"


def test_a_killed_run_is_taken_over_with_a_word(holder, tmp_path, capsys):
    holder.kill()
    holder.join()
    with only_run_in(tmp_path / "run"):
        assert f"process {holder.pid} on {socket.gethostname()} was training" in capsys.readouterr().out


def test_a_folder_in_which_nothing_began_goes_and_another_stays_clean(tmp_path):
    with only_run_in(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()
    with only_run_in(tmp_path / "run"):
        (tmp_path / "run" / "metrics.csv").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.csv"]


def test_other_processes_of_the_run_do_not_ask(holder, launch, tmp_path):
    launch(TORCHRUN)
    with only_run_in(tmp_path / "run"):
        pass
