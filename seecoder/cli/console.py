"""What commands print, and what they refuse to write over."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryFile

_LONGEST_NAME = 255  # bytes, on all common file systems


def say(text: str) -> None:
    """Print a line for the person at the terminal; pictures and files are the result, so it goes to standard error."""
    print(text, file=sys.stderr, flush=True)


def check_new(paths: Sequence[Path], overwrite: bool, inputs: Iterable[str | Path] = ()) -> None:
    """Refuse what could not be written, or not without loss, before anything is computed.

    Args:
        paths: What will be written.
        overwrite: Whether the user allowed to write over existing files.
        inputs: Files that are read, and never written over.

    Raises:
        FileExistsError: One of them exists, or is written twice, or is an input.
        IsADirectoryError: One of them is a folder.
        NotADirectoryError: A folder on the way is a file.
        OSError: A name is too long, or a folder cannot be written to.
    """
    sources = {Path(source).resolve() for source in inputs}
    for path, times in Counter(paths).items():
        if len(os.fsencode(path.name)) > _LONGEST_NAME:
            raise OSError(f"`{path.name[:40]}…` is too long for the name of a file; use at most {_LONGEST_NAME} bytes.")
        if path.is_dir():
            raise IsADirectoryError(f"`{path}` is a folder; give the name of a file.")
        if path.exists() and not overwrite:
            raise FileExistsError(f"`{path}` exists; use --overwrite, or another --out.")
        if times > 1:
            raise FileExistsError(f"`{path}` would be written {times} times; give each result a name of its own.")
        if path.resolve() in sources:
            raise FileExistsError(f"`{path}` is an input; write the result elsewhere.")
        for parent in path.parents:
            if parent.exists() and not parent.is_dir():
                raise NotADirectoryError(f"`{parent}` is a file; it cannot hold `{path.name}`.")
    for folder in {path.parent for path in paths}:
        _check_writable(folder)


def check_replaceable(path: Path, overwrite: bool) -> None:
    """Refuse a folder (or file) as the result of a command that must not be there, before anything is computed.

    Args:
        path: What will be written.
        overwrite: Whether the user allowed to replace what is there.

    Raises:
        FileExistsError: It exists, and is no empty folder.
        OSError: It cannot be written.
    """
    if path.exists() and not overwrite and (path.is_file() or any(path.iterdir())):
        raise FileExistsError(f"`{path}` exists; use --overwrite, or another OUT.")
    _check_writable(path.parent)


def _check_writable(folder: Path) -> None:
    try:
        with TemporaryFile(dir=_existing_folder(folder)):
            pass
    except OSError as error:
        raise OSError(f"`{folder}` cannot be written to ({error.strerror}); choose another folder.") from error


def check_space(folder: Path, needed: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        folder: Where the results go; it need not exist yet.
        needed: Bytes that they take at most.

    Raises:
        OSError: The disk has less.
    """
    free = shutil.disk_usage(_existing_folder(folder)).free
    if needed > free:
        raise OSError(
            f"`--out`={folder} has {free / 2**30:.2f} GiB free, and the results may take {needed / 2**30:.2f}; make "
            "room, ask for less, or choose another folder."
        )


def _existing_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(folder for folder in (path, *path.parents, Path()) if folder.is_dir())
