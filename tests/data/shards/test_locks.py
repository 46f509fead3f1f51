"""Locks on storage that locks, and on storage that does not."""

import errno
import fcntl
from pathlib import Path
from typing import Any

import pytest
from filelock import Timeout

from data.shards.locks import locked


@pytest.fixture
def no_flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that answers every lock with an error."""

    def refuse(file: Any, operation: int) -> None:
        raise OSError(request.param, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_one_holder_at_a_time(tmp_path: Path):
    with locked(tmp_path / "a.lock"):
        with pytest.raises(Timeout), locked(tmp_path / "a.lock", 0):
            pass
        with locked(tmp_path / "b.lock", 0):
            pass
    with locked(tmp_path / "a.lock", 0):
        pass


@pytest.mark.parametrize(
    "no_flock", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EBADF, errno.EINVAL], indirect=True
)
def test_a_file_stands_for_the_lock_where_there_is_none(no_flock: None, tmp_path: Path):
    for _ in range(3):  # nothing that is left behind blocks the next one
        said = pytest.warns(UserWarning, match="no locks on this storage|flock not supported")
        with said, locked(tmp_path / "a.lock", 0), pytest.raises(Timeout), locked(tmp_path / "a.lock", 0):
            pass


@pytest.mark.parametrize("no_flock", [errno.ENOSPC, errno.EIO], indirect=True)
def test_a_disk_that_fails_is_no_reason_to_go_on_without(no_flock: None, tmp_path: Path):
    with pytest.raises(OSError, match="no locks here"), locked(tmp_path / "a.lock", 0):
        pass


def test_nfs_wants_files_that_are_open_for_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    flock = fcntl.flock

    def of_nfs(file: int, operation: int) -> None:
        if operation & fcntl.LOCK_EX and fcntl.fcntl(file, fcntl.F_GETFL) & 3 == 0:  # open for reading only
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", of_nfs)
    with locked(tmp_path / "a.lock", 0):
        assert not (tmp_path / "a.lock.soft").exists(), "a true lock"
