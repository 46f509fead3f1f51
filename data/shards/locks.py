"""Locks between processes, also on storage that knows none."""

import errno
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock

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
