"""Shards of image files: found below a folder or named in a list, kept byte by byte or scaled down."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from data.shards.building.sources import Item, encode_image, encode_json
from seecoder.checks import check, optional, whole
from seecoder.images.gate import ImageError, load_image
from seecoder.images.saving import to_pil

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")


@dataclass(frozen=True)
class ImageFiles:
    """Picture files.

    Attributes:
        paths: The files.
        names: How each is called in JSON and reports.
        size: Pictures whose shorter side is longer than this are scaled down to it; None keeps them, byte by byte if
            they are JPEG, PNG or WebP.
        encode: What scaled pictures, and formats that do not belong into shards, are written as: "jpeg", "png" or
            "webp".
        quality: Of JPEG and WebP, 1 to 100.
        max_pixels: Larger pictures count as bad.
        sizes: Bytes of each file.
        digest: Fingerprint of names, sizes and times of the files.
    """

    members = ("json",)  # the kind of picture varies

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    size: int | None
    encode: str
    quality: int
    max_pixels: int
    sizes: tuple[int, ...]
    digest: str

    def __post_init__(self) -> None:
        check(self, size=optional(whole(1)), quality=whole(1, 100), max_pixels=whole(1))

    @staticmethod
    def from_paths(
        paths: list[Path], names: list[str], size: int | None, encode: str, quality: int, max_pixels: int
    ) -> "ImageFiles":
        """Take stock of the files; files that do not exist are kept and will be counted as bad."""
        digest, sizes = hashlib.sha256(), []
        for path, name in zip(paths, names, strict=True):
            try:
                status = path.stat()
                sizes.append(status.st_size)
                stamp = status.st_mtime_ns
            except OSError:
                sizes.append(0)
                stamp = -1
            digest.update(repr((name, sizes[-1], stamp)).encode())
        return ImageFiles(
            tuple(paths), tuple(names), size, encode, quality, max_pixels, tuple(sizes), digest.hexdigest()
        )

    @property
    def settings(self) -> dict[str, Any]:
        """All that the samples depend on, the files by a digest of their names, sizes and times."""
        size = "keep" if self.size is None else self.size
        encoding = {"size": size, "encode": self.encode, "quality": self.quality, "max_pixels": self.max_pixels}
        return {"kind": "pictures", "count": len(self), "sources_sha256": self.digest} | encoding

    def __len__(self) -> int:
        return len(self.paths)

    def samples(self, start: int, stop: int) -> Iterator[Item]:
        """Read, check and maybe scale pictures."""
        for number in range(start, stop):
            name, key = self.names[number], f"{number:09d}"
            try:
                members = self._members(self.paths[number], name)
            except ImageError as error:
                yield Item(name, key, {}, error.reason)
            except (OSError, ValueError) as error:  # the file went away, or is too long for the format it is written in
                yield Item(name, key, {}, f"{type(error).__name__}: {error}")
            else:
                yield Item(name, key, members)

    def _members(self, path: Path, name: str) -> dict[str, bytes]:
        image = to_pil(load_image(path, max_pixels=self.max_pixels))
        content = path.read_bytes()
        width, height = image.size
        kind = _kind(content)
        scaled = self.size is not None and min(width, height) > self.size
        if scaled:
            shorter = self.size or 0
            scale = shorter / min(width, height)
            sides = max(shorter, round(width * scale)), max(shorter, round(height * scale))
            image = image.resize(sides, Image.Resampling.LANCZOS)
        if scaled or kind is None:
            kind, content = {"jpeg": "jpg"}.get(self.encode, self.encode), self._encoded(image)
        about = {"source": name, "height": image.height, "width": image.width}
        about |= {"original_height": height, "original_width": width} if scaled else {}
        return {kind: content, "json": encode_json(about)}

    def _encoded(self, image: Image.Image) -> bytes:
        options = {} if self.encode == "png" else {"quality": self.quality}
        return encode_image(image, self.encode.upper(), **options)


def _kind(content: bytes) -> str | None:
    """Tell the formats that go into a shard as they are; None for others. Content decides, not the file's name."""
    if content.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "webp" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else None


def find_image_files(folder: Path) -> tuple[list[Path], int]:
    """List the picture files below a folder, sorted by name, and count the other files.

    Links to files are followed, links to folders are not (they could lead round in circles).

    Raises:
        FileNotFoundError: The folder does not exist.
        NotADirectoryError: It is no folder.
    """
    if not folder.exists():
        raise FileNotFoundError(f"`{folder}` does not exist.")
    if not folder.is_dir():
        raise NotADirectoryError(f"`{folder}` is a file. For a list of pictures use `python -m data.build list`.")
    images, others = [], 0
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.lower().endswith(IMAGE_SUFFIXES):
                images.append(Path(parent, name))
            else:
                others += 1
    return sorted(images, key=lambda path: os.fsencode(path.relative_to(folder).as_posix())), others


def read_image_list(file: Path) -> list[Path]:
    """Read a list of picture files: one path a line, relative to the list's folder; blank and `#` lines do not count.

    Raises:
        FileNotFoundError: The list does not exist.
        ValueError: It is not UTF-8 text, or a line is a URL.
    """
    if not file.is_file():
        raise FileNotFoundError(f"`{file}` is no file. Give a text file with the path of one picture a line.")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"`{file}` is not UTF-8 text ({error}).") from error
    paths = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if "://" in line or line.startswith("pipe:"):
            raise ValueError(
                f"`{file}` line {number}: `{line}` is not a local path. To fetch pictures from the web use "
                "img2dataset, whose shards are read as they are."
            )
        paths.append(file.parent / line.strip())
    return paths


def printable_name(path: Path | str) -> str:
    """Make a file's name fit for JSON and logs, whatever bytes it holds."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
