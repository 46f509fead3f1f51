"""What commands print, and the safe names of what they write."""

import re
import sys
from pathlib import Path


def say(text: str) -> None:
    """Print a line for the person at the terminal; pictures and files are the result, so it goes to standard error."""
    print(text, file=sys.stderr, flush=True)


def safe_name(text: str, limit: int = 40) -> str:
    """Make a piece of a file name out of anything.

    Args:
        text: Such as the name of an input picture.
        limit: Longest result.

    Returns:
        1 to `limit` characters out of A-Z, a-z, 0-9, hyphen and underscore.
    """
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")[:limit].strip("-")
    return slug or "picture"


def check_new(paths: list[Path], overwrite: bool) -> None:
    """Refuse to write over existing files, before anything is computed.

    Args:
        paths: What will be written.
        overwrite: Whether the user allowed it.

    Raises:
        FileExistsError: One of them exists.
        NotADirectoryError: A folder on the way is a file.
    """
    for path in paths:
        if path.exists() and not overwrite:
            raise FileExistsError(f"`{path}` exists; use --overwrite, or another --out.")
        for parent in path.parents:
            if parent.is_file():
                raise NotADirectoryError(f"`{parent}` is a file; it cannot hold `{path.name}`.")
