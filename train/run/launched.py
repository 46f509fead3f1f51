"""The processes that a launcher has started, and the one run that a folder holds."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from filelock import Timeout

from data.shards.locks import locked
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
    found = _launcher()
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
        FileExistsError: Another process trains there; its machine and number are named.
    """
    if not is_first_process():
        yield
        return
    lock, note = folder / ".run.lock", folder / ".run.holder"
    folder.mkdir(parents=True, exist_ok=True)
    holder = note.read_text(encoding="utf-8", errors="replace").strip() if note.is_file() else ""
    with ExitStack() as held:
        try:
            held.enter_context(locked(lock, _PATIENCE))
        except Timeout:
            raise FileExistsError(
                f"`run.folder`={folder} is in use: {holder or 'another process'} is training there. Wait for it, or "
                f"choose another folder. If that process has ended, remove {lock}*."
            ) from None
        if holder:
            print(f"note: {holder} was training in {folder} and has ended; its run is taken over", flush=True)
        with suppress(OSError):  # a full disk; the name is for messages alone
            note.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        try:
            yield
        finally:
            for path in (note, lock):
                path.unlink(missing_ok=True)
            with suppress(OSError):  # only an empty folder goes: nothing began
                folder.rmdir()
