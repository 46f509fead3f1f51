"""Which reader a file goes to, by how it begins."""

import re
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from seecoder.images.formats.isobmff import open_isobmff
from seecoder.images.formats.png import open_png
from seecoder.images.formats.streams import open_bmp, open_gif, open_jpeg
from seecoder.images.formats.tiff import open_tiff
from seecoder.images.formats.webp import open_webp
from seecoder.images.header import BadImage, warn_of_frames

# The class of each format is used directly: unlike `Image.open` it knows no pixel limit of its own, so that a larger
# `max_pixels` needs no change of the process-wide `Image.MAX_IMAGE_PIXELS` (which other threads may rely on), and none
# of Pillow's other formats (more than thirty, one of which starts Ghostscript) can be reached.
_OPENERS: list[tuple[re.Pattern[bytes], Callable[[bytes, int], Image.Image]]] = [
    (re.compile(rb"\xff\xd8\xff"), open_jpeg),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), open_png),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), open_webp),
    (re.compile(rb"II\x2a\0|MM\0\x2a"), open_tiff),
    (re.compile(rb"GIF8[79]a"), open_gif),
    (re.compile(rb"....ftyp", re.DOTALL), open_isobmff),
    (re.compile(rb"BM"), open_bmp),
]


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Open the first image of a file after the checks of its format.

    Every check is bounded by the length of the file.

    Raises:
        BadImage: If the format is not one of the eight, or the file is truncated, damaged, larger than `max_pixels` or
            made to cost more than it is worth. On damage Pillow raises exceptions of its own, too.
    """
    for signature, opener in _OPENERS:
        if signature.match(data):
            image = opener(data, max_pixels)
            if getattr(image, "is_animated", False):
                warn_of_frames()
            return image
    if not data:
        raise BadImage("the file is empty")
    what = f"a file that begins with {data[:8]!r}"
    if data.startswith(b"version https://git-lfs"):
        what = "a Git LFS pointer (run `git lfs pull`)"
    elif data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        what = "a web page or another text with tags (HTML, XML, SVG)"
    raise BadImage(f"this is {what}; JPEG, PNG, WEBP, TIFF, BMP, GIF, AVIF and HEIC are read")


def is_image_file(path: Path) -> bool:
    """Whether a path is a file of a format that is read, by how it begins."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(64)
    return any(signature.match(head) for signature, _ in _OPENERS)
