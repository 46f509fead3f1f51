"""Shards of image files, kept byte by byte or scaled down."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from data.shards.building.dataset_rows import ImageRow
from data.shards.building.sources import Item, encode_image, encode_json
from seecoder.checks import check, optional, whole
from seecoder.images.gate import ImageError, load_image
from seecoder.images.saving import to_pil


@dataclass(frozen=True)
class ImageFiles:
    """Picture files.

    Attributes:
        paths: The files, or rows that hold such.
        names: How each is called in JSON and reports.
        size: Pictures whose shorter side is longer than this are scaled down to it; None keeps them, byte by byte if
            they are JPEG, PNG or WebP.
        encode: What scaled pictures, and formats that do not belong into shards, are written as: "jpeg", "png" or
            "webp".
        quality: Of JPEG and WebP, 1 to 100.
        max_pixels: Larger pictures count as bad.
        sizes: Bytes of each file.
        digest: Fingerprint of names, sizes and times of the files.
        min_side: Pictures with a shorter side below this many pixels count as bad.
    """

    members = ("json",)  # the kind of picture varies

    paths: tuple[Path | ImageRow, ...]
    names: tuple[str, ...]
    size: int | None
    encode: str
    quality: int
    max_pixels: int
    sizes: tuple[int, ...]
    digest: str
    min_side: int = 1

    def __post_init__(self) -> None:
        check(self, size=optional(whole(1)), quality=whole(1, 100), max_pixels=whole(1), min_side=whole(1))

    @staticmethod
    def from_paths(paths: Sequence[Path | ImageRow], names: list[str], **options: Any) -> "ImageFiles":
        """Take stock of the files; those that do not exist are kept and counted as bad. `options`: other attributes."""
        digest, sizes = hashlib.sha256(), []
        for path, name in zip(paths, names, strict=True):
            size, stamp = 0, -1
            with suppress(OSError, AttributeError):  # a row has neither
                size, stamp = path.stat().st_size, path.stat().st_mtime_ns  # pyright: ignore[reportAttributeAccessIssue]
            sizes.append(size)
            digest.update(repr((name, size, stamp)).encode())
        return ImageFiles(tuple(paths), tuple(names), sizes=tuple(sizes), digest=digest.hexdigest(), **options)

    @property
    def settings(self) -> dict[str, Any]:
        """All that the samples depend on, the files by a digest of their names, sizes and times."""
        size = "keep" if self.size is None else self.size
        encoding = {"size": size, "encode": self.encode, "quality": self.quality, "max_pixels": self.max_pixels}
        encoding |= {"min_side": self.min_side} if self.min_side > 1 else {}
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

    def _members(self, path: Path | ImageRow, name: str) -> dict[str, bytes]:
        image = to_pil(load_image(path if isinstance(path, Path) else path.read_bytes(), max_pixels=self.max_pixels))
        content = path.read_bytes()
        width, height = image.size
        kind = _kind(content)
        if min(width, height) < self.min_side:
            raise ImageError(name, f"its shorter side has less than {self.min_side} pixels")
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
