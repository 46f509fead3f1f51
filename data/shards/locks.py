"""Locks between processes, also on storage that knows none."""

import errno
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

# What NFS, FUSE and SMB answer where they do not lock; for Lustre's ENOSYS filelock does by itself what is done here.
_NO_LOCKS = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EBADF, errno.EINVAL)


@contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold a lock. Where the storage has none, and a warning says so, the mere presence of a file stands for it.

    Args:
        path: File of the lock.
        timeout: Seconds to wait for another holder; for ever if negative.

    Raises:
        Timeout: Another process holds it.
    """
    lock: BaseFileLock = FileLock(path, timeout=timeout)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        lock = SoftFileLock(path.with_name(path.name + ".soft"), timeout=timeout)
        kill = f"If a process is killed on another machine, remove `{path}.soft`."
        warnings.warn(f"There are no locks on this storage, a file stands for one. {kill}", stacklevel=3)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def only_process_in(folder: Path, doing: str, timeout: float = 0) -> Iterator[None]:
    """Make a folder, and keep other processes out of it while the block runs.

    Args:
        folder: The folder.
        doing: What the process does there, in one word.
        timeout: Seconds to wait for another one.

    Raises:
        FileExistsError: Another process does it there; its number and machine are named.
    """
    lock, note = folder / f".{doing}.lock", folder / f".{doing}.holder"
    folder.mkdir(parents=True, exist_ok=True)
    holder = note.read_text(encoding="utf-8", errors="replace").strip() if note.is_file() else "without a name"
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(lock, timeout))  # given back by the system if we are killed
        except Timeout:
            raise FileExistsError(
                f"Another process is {doing} in `{folder}` right now: {holder}. Wait for it, or choose another folder. "
                f"If it has ended, remove {lock}*."
            ) from None
        if note.is_file():
            print(f"note: {holder} was {doing} in {folder} and has ended; its work is taken over", flush=True)
        with suppress(OSError):  # a full disk; the name is for messages alone
            note.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        for path in (lock, note):
            stack.callback(path.unlink, missing_ok=True)
        yield
