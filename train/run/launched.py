"""The processes that a launcher has started, and the one run that a folder holds."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from data.shards.locks import only_process_in
from train.settings import RunSettings

# Names of a launcher's variables: all processes, this one's rank, processes of this node. The first that is there
# counts: torchrun may run inside SLURM, and Lightning asks in the same order.
_LAUNCHERS = {
    "torchrun": ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE"),
    "SLURM": ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_NTASKS_PER_NODE"),
    "mpirun": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    "mpiexec": ("PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS"),
}
_PATIENCE = 5.0  # seconds for what a killed run leaves: its readers hold the lock until they notice


def _launcher() -> tuple[str, int, int, int] | None:
    """Name, all processes, rank and processes of this node (0: unknown) of who started this process, if anybody did."""
    for name, variables in _LAUNCHERS.items():
        world, rank, local = (os.environ.get(variable, "") for variable in variables)
        is_shell = name == "SLURM" and os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
        if world.isdecimal() and rank.isdecimal() and not is_shell:
            return name, int(world), int(rank), int(local) if local.isdecimal() else 0
    return None


def is_first_process() -> bool:
    """Whether this process speaks for the run; also before processes know each other."""
    found = _launcher()
    ranks = [os.environ.get(name) or "0" for name in ("LOCAL_RANK", "NODE_RANK")]
    return found[2] == 0 if found else all(rank == "0" for rank in ranks)


def check_launcher(run: RunSettings) -> None:
    """Refuse another number of processes than the run's: each would train the whole of it, in one folder.

    Raises:
        ValueError: With both numbers.
    """
    found, tasks = _launcher(), os.environ.get("SLURM_NTASKS", "1")
    if found is None and tasks != "1" and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        raise ValueError(f"`SLURM_NTASKS`={tasks} must be left out without srun. Unset it, or begin with srun.")
    for name, count in (("RANK", run.devices * run.num_nodes), ("LOCAL_RANK", run.devices)):  # of an earlier launch
        if found is None and (rank := os.environ.get(name, "")).isdecimal() and int(rank) >= count:
            raise ValueError(f"`{name}`={rank} must be below {count}, the processes of the run. Unset it.")
    if found is None:
        return
    name, world, _, local = found
    if world != run.devices * run.num_nodes or (local and local != run.devices):
        here = local or world
        raise ValueError(
            f"`run.devices`={run.devices} with `run.num_nodes`={run.num_nodes} must be the {world} processes that "
            f"{name} has started{f', {local} on this node' if local else ''}. Give --run.devices {here} "
            f"--run.num_nodes {world // here}, or let {name} start {run.devices * run.num_nodes}."
        )
    if name.startswith("mpi") and world > 1 and find_spec("mpi4py") is None:
        raise ValueError(
            f"`run.devices`={run.devices}: processes of {name} find each other by mpi4py, which does not exist here. "
            "Install it, or use scripts/launch/torchrun."
        )


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Make a run's folder, and keep other runs out of it while the block runs; the first process does it for all.

    Raises:
        FileExistsError: Another process trains there.
    """
    if not is_first_process():
        yield
        return
    try:
        with only_process_in(folder, "training", _PATIENCE):
            yield
    finally:
        with suppress(OSError):  # only an empty folder goes: nothing began
            folder.rmdir()
