"""Reading processes outlive a SIGTERM, SIGUSR1 or Ctrl-C that is meant for the process that trains.

Launchers send it to every process of a job (torchrun to its group, SLURM to the step), and a terminal its Ctrl-C.
torch's workers would die of it, and the process that trains, which wants to finish its step and save, with them. Here
they obey their parent alone.

They also end when it is killed. torch's workers look whether another process has become the one above them, which for
those of a fork server is the server and stays; they would keep it, and wait, for good.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process, resource_tracker
from typing import Any

# What schedulers warn with: scripts/launch/slurm.sbatch asks for the first, launch files written for Lightning for the
# second, which Windows lacks. The third is Ctrl-C.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))
_TERM = {signal.SIGTERM}


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Start processes in here: they inherit that these signals wait, in all threads that they will ever have."""
    resource_tracker.ensure_running()  # would otherwise start in here, and lift the mask when it has
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_parent_alone(_: int = 0) -> None:
    """In a process that was started so: end when the parent says so or ends, and pass over what others say."""
    end_with_parent()
    parent = parent_process()
    if parent is not None and hasattr(signal, "sigwaitinfo"):  # macOS has none: there SIGTERM waits for good
        threading.Thread(target=_wait_for_sigterm_of, args=(parent.pid,), daemon=True).start()


def end_with_parent() -> None:
    """End this process as soon as its parent ends, even if that is killed; nothing in a process without a parent."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _wait_for_sigterm_of(parent: int) -> None:
    while signal.sigwaitinfo(_TERM).si_pid != parent:
        pass
    os._exit(0)
