"""Which image files a build reads: those below a folder, or those that a list names. What is passed over is told."""

import codecs
import hashlib
import os
import re
import stat
import unicodedata
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from data.shards.building.dataset_rows import ImageRow
from seecoder.checks import Rule, require

IMAGE_SUFFIX = re.compile(r"\.(jpe?g|jpe|jfif|mpo|a?png|webp|tiff?|bmp|dib|gif|avif|hei[cf]|hif)", re.IGNORECASE)
_LINE_ENDS = re.compile(r"\r\n|\n|\r")  # `splitlines` would also cut names that hold U+2028 and its like
# Told by content where the name does not: no TIFF, which raw files of cameras are, too, and no videos.
_IMAGE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|GIF8[79]a|....ftyp(?:avi[fs]|hei[cmsx]|mif1)", re.DOTALL
)
_HIDDEN = re.compile(r"\.(?!_)|@eaDir$|__MACOSX$")  # waste baskets, thumbnails, copies that editors keep


def find_image_files(folder: Path) -> tuple[list[Path], list[str]]:
    """List the image files below a folder, and say what else is there.

    What cannot be read, such as a link to nowhere, is listed as well: a build counts it as bad.

    Returns:
        The files, sorted by name; sentences about what is left out and what is odd.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"`{folder}` does not exist, or is a file. For lists use `python -m data.build list`.")
    notes: list[str] = []
    images, unnamed, others = [], [], Counter[str]()
    failed: list[OSError] = []
    for path in files_below(folder, notes, failed):
        hidden = next(filter(_HIDDEN.match, path.relative_to(folder).parts), "")
        is_mac = path.name.startswith("._")  # what a Mac notes about `x.jpg` on foreign disks is called `._x.jpg`
        is_named = bool(IMAGE_SUFFIX.fullmatch(path.suffix)) and not is_mac
        if not hidden and (is_named or _holds_image(path)):
            images.append(path)
            unnamed += [] if is_named else [printable_name(path)]
        else:
            others[hidden or ("._*" if is_mac else path.suffix.lower() or path.name)] += 1
    images += [Path(error.filename) for error in failed]
    notes += [f"`{printable_name(e.filename)}` cannot be read ({e.strerror}) and counts as bad" for e in failed]
    if unnamed:
        notes.append(f"{len(unnamed):,} files are taken for what they hold, not for their names, such as {unnamed[0]}")
    if others:
        kinds = ", ".join(f"{count:,} x {printable_name(kind)}" for kind, count in others.most_common(10))
        notes.append(f"{others.total():,} files in {folder} are no pictures, or hidden, and are left out ({kinds})")
    return sorted(images, key=lambda path: os.fsencode(path.relative_to(folder).as_posix())), notes


def files_below(folder: Path, notes: list[str], failed: list[OSError]) -> Iterator[Path]:
    """Yield all files below a folder; links lead to each folder once.

    `notes` takes a sentence about such links, `failed` an error for each folder that cannot be listed.
    """
    waiting, seen, again = deque([folder]), set[str](), []
    while waiting:  # folders behind links come last, so that a picture is found where it lies before where it is linked
        for parent, folders, names in os.walk(waiting.popleft(), onerror=failed.append):
            place = os.path.realpath(parent)
            if place in seen:
                again.append(printable_name(parent))
                folders.clear()
                continue
            seen.add(place)
            waiting.extend(Path(parent, name) for name in sorted(folders) if os.path.islink(os.path.join(parent, name)))
            yield from (Path(parent, name) for name in names)
    if again:
        notes.append(f"{len(again):,} linked folders lead to folders that are read anyway, such as {again[0]}")


def _holds_image(path: Path) -> bool:
    """Whether a file is an image by its content. True for what cannot be opened, so that it is counted as bad."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # to open a pipe would wait for ever
            return stat.S_ISDIR(mode)
        with path.open("rb") as file:
            return bool(_IMAGE.match(file.read(16)))
    except OSError:
        return True


def read_image_list(file: Path) -> tuple[list[Path], list[str]]:
    """Read a list of image files: one path a line, relative to the list's folder.

    A line is taken as it stands if there is such a file; else without blanks and quotation marks around it, with
    slashes for the backslashes of Windows, or with accents written in the other way. Blank lines, and those with `#` in
    front that name no file, do not count.

    Returns:
        The files; sentences about lines that are left out or odd.

    Raises:
        FileNotFoundError: The list does not exist.
        ValueError: It is neither UTF-8 nor UTF-16 text, or a line is a URL.
    """
    if not file.is_file():
        raise FileNotFoundError(f"`{file}` is no file. Give a text file with the path of one picture a line.")
    content = file.read_bytes()
    try:
        text = content.decode("utf-16" if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"`{file}` is not UTF-8 text, nor UTF-16 with a byte order mark ({error}).") from error
    if "\0" in text:
        raise ValueError(f"`{file}` is no text with one path a line: it holds zeros. Save it as UTF-8.")
    paths, left_out = [], Counter[str]()
    for number, line in enumerate(_LINE_ENDS.split(text), 1):
        path = _listed_file(file.parent, line)
        if line.lstrip().startswith("#") and not os.path.isfile(path):
            left_out["begin with # and name no file: they are comments"] += 1
        elif path.name.startswith("._") and not _holds_image(path):
            left_out["name what a Mac notes about pictures (._*), and are left out"] += 1
        elif "://" in line or line.startswith("pipe:"):
            raise ValueError(
                f"`{file}` line {number}: `{line}` is not a local path. To fetch pictures from the web use "
                "img2dataset, whose shards are read as they are."
            )
        elif line.strip():
            paths.append(path)
    left_out["name a picture again; it is taken again"] = len(paths) - len(set(paths))
    return paths, [f"{count:,} lines of {file} {what}" for what, count in left_out.items() if count]


def _listed_file(folder: Path, line: str) -> Path:
    """The file that a line of a list means; if there is none, where it would be."""
    name = line.strip().strip("\"'\ufeff")  # a mark of byte order stands within where lists were joined
    forms = [line, line.strip(), name, name.replace("\\", "/")]
    forms += [unicodedata.normalize(form, forms[-1]) for form in ("NFC", "NFD")]  # a Mac writes accents apart
    return next((folder / form for form in forms if os.path.exists(folder / form)), folder / line.strip())


def split_held_out(paths: Sequence[Path | ImageRow], count: int) -> tuple[list[int], list[int]]:
    """Choose files that no training shall see, by the hashes of what they hold: the same ones every time.

    Returns:
        Numbers of the files to train on, and of those to hold out: `count`, and their copies under other names.

    Raises:
        ValueError: There are not more different files than `count`.
    """
    digests = [content_digest(path) if count else "" for path in paths]
    different = len(set(digests))
    below = Rule(lambda n: 0 <= n < max(1, different), f"from 0 up and below {different}, the different pictures here")
    require("held_out", count, below)
    chosen = set(sorted(set(digests))[:count])
    numbers = range(len(paths))
    return [n for n in numbers if digests[n] not in chosen], [n for n in numbers if digests[n] in chosen]


def content_digest(path: Path | ImageRow) -> str:
    """Digest of a file's size and beginning, equal for copies; what cannot be read comes behind all digests."""
    with suppress(OSError):
        if isinstance(path, ImageRow):
            content = path.read_bytes()
            return hashlib.sha256(b"%d %b" % (len(content), content[: 1 << 16])).hexdigest()
        if path.is_file():  # to open a pipe would wait for ever
            with path.open("rb") as file:
                return hashlib.sha256(b"%d %b" % (path.stat().st_size, file.read(1 << 16))).hexdigest()
    return f"unreadable {path}"


def printable_name(path: Path | str) -> str:
    """Make a file's name fit for JSON and logs, whatever bytes it holds."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
