"""Files and folders that appear under their name complete or not at all.

What is written goes to a sibling whose name ends in `.partial`, reaches the disk, and is then renamed. A process that
is killed leaves at most such a sibling, which no reader of pictures, weights or shards takes for the real thing.

Written here because what libraries offer covers files only, or does not sync, or leaves its siblings behind.
"""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LONGEST = 50  # characters of a name that its siblings keep
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF)  # of a folder: it cannot be done, nothing failed
_LEFT_BEHIND = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.(?P<suffix>partial|previous)")


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any error it is removed.

    Write the file under the yielded path in any way. Permissions are those of a newly created file (the umask decides).
    An existing file of that name stays as it is until the new one is complete.

    Raises:
        FileNotFoundError: If the folder of `path` does not exist, or nothing was written.
        IsADirectoryError: If `path` is a folder.
        OSError: If the disk is full or fails; `path` is then as it was.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"`path`={path} is a folder; the name of a file is needed")
    partial = _sibling(path, "partial")
    try:
        yield partial
        if not partial.is_file():
            raise FileNotFoundError(f"nothing was written for {path}")
        _sync(partial)
        _rename(partial, path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            partial.unlink()
        raise
    _sync_folder(path.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file of UTF-8, which appears whole or not at all; errors are those of `atomic_path`."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def atomic_directory(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a new temporary folder beside `path`; on success it becomes `path`, on any error it is removed.

    Args:
        path: The folder to make. It may exist if it is empty.
        overwrite: Replace a folder that is not empty. The old one is moved aside first and deleted last; a kill in
            between leaves it beside, as `.NAME.*.previous`.

    Raises:
        FileNotFoundError: If the parent folder does not exist.
        FileExistsError: If `path` is a file, or a folder that is not empty and `overwrite` is false.
        OSError: If the disk is full or fails; `path` is then as it was.
    """
    path = Path(path)
    _check_replaceable(path, overwrite)
    partial = _sibling(path, "partial")
    partial.mkdir(exist_ok=True)  # so that a lost answer of NFS does not matter; the name is random
    try:
        yield partial
        for folder, _, names in os.walk(partial):
            for name in names:
                _sync(Path(folder, name))
            _sync_folder(Path(folder))
        _check_replaceable(path, overwrite)  # minutes may have passed
        previous = _sibling(path, "previous")
        if path.is_dir() and any(path.iterdir()):
            _rename(path, previous)
        try:
            _rename(partial, path)
        except BaseException:
            if previous.exists():
                _rename(previous, path)
            raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync_folder(path.parent)
    shutil.rmtree(previous, ignore_errors=True)


def remove_left_behind(folder: str | os.PathLike[str]) -> None:
    """Remove what processes that were killed while they wrote have left in a folder that no other process writes to.

    An old folder that had been moved aside takes its place again if the new one never came to be.
    """
    for path in Path(folder).glob(".*"):
        found = _LEFT_BEHIND.fullmatch(path.name)
        if found is None:
            continue
        target = path.with_name(found["name"])
        if found["suffix"] == "previous" and not target.exists():
            if len(target.name) < _LONGEST:  # else the name was cut, and whose it was is not known
                _rename(path, target)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _rename(source: Path, target: Path) -> None:
    """Rename. Where NFS lost its first answer, the second one is that `source` does not exist: it has moved by then."""
    before = os.stat(source)
    try:
        os.replace(source, target)
    except FileNotFoundError:
        if not (target.exists() and os.path.samestat(before, os.stat(target))):
            raise


def _check_replaceable(path: Path, overwrite: bool) -> None:
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"`path`={path} is a file; the name of a folder is needed")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise FileExistsError(f"`path`={path} is a folder that is not empty; choose another or remove it")


def _sibling(path: Path, suffix: str) -> Path:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"`path`={path}: the folder {path.parent} does not exist; make it first")
    # Cut so that the longest legal name (255 bytes, and a character may take four) still makes a legal sibling.
    return path.parent / f".{path.name[:_LONGEST]}.{secrets.token_hex(4)}.{suffix}"


def _sync(path: Path) -> None:
    if path.is_symlink() or not path.is_file():
        return
    with open(path, "r+b") as file:  # Windows refuses to flush what is open for reading only
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Make a rename in this folder durable; Windows and some network storage have no such call."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)
