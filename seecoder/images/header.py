"""What the readers of all formats share: the opened image, the reason for refusing one, limits, EXIF orientation."""

import struct
from dataclasses import dataclass

from PIL import ImageFile

# Larger than any profile in use (press profiles reach 4 MB); an ICC profile in JPEG cannot exceed 16.6 MB anyway.
MAX_PROFILE_BYTES = 16 * 1024 * 1024


class BadImage(ValueError):
    """A reason for refusing an image, without the name of its source: `load_image` adds that."""


@dataclass(frozen=True)
class OpenedImage:
    """A file that passed the checks of its format: a Pillow image, opened but not decoded.

    Attributes:
        image: Its `info` holds the colour profile and the EXIF block, if there are any.
        animated: True if the file holds more than one frame or page.
        canvas: (width, height, left, top) of a GIF whose first frame leaves part of the canvas empty.
    """

    image: ImageFile.ImageFile
    animated: bool = False
    canvas: tuple[int, int, int, int] | None = None


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse an image that is empty or has more than `max_pixels` pixels."""
    if width < 1 or height < 1:
        raise BadImage(f"its size is {width} x {height}: it has no pixels")
    if width * height > max_pixels:
        raise BadImage(
            f"it has {width * height:,} pixels ({width:,} x {height:,}); the limit is {max_pixels:,}. "
            "Resize it, or pass a larger max_pixels if you trust the source"
        )


def unpack(layout: str, data: bytes, position: int) -> tuple[int, ...]:
    """Integers at `position`, in the layout of the `struct` module.

    Raises:
        BadImage: If the file ends before them.
    """
    if position < 0 or position + struct.calcsize(layout) > len(data):
        raise BadImage("the file is truncated: it ends inside a header")
    return struct.unpack_from(layout, data, position)


def orientation_from_exif(exif: bytes) -> int:
    """Orientation tag (0x0112) of the first directory of an EXIF block (EXIF 2.32, section 4.6.4), 1 if there is none.

    Only this tag is read: a block of 64 KB can hold thousands of tags that each claim 60 KB, which makes general EXIF
    readers expensive. Damaged EXIF is no reason to refuse the image, so it counts as absent.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order = "<" if exif.startswith(b"II") else ">"
    try:
        (start,) = unpack(order + "I", exif, 4)
        (count,) = unpack(order + "H", exif, start)
        for position in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _ = unpack(order + "HHI", exif, position)
            if tag == 0x0112 and kind in (3, 4):  # SHORT as the standard says, LONG as some cameras write
                (value,) = unpack(order + ("H" if kind == 3 else "I"), exif, position + 8)
                return value if 1 <= value <= 8 else 1
    except BadImage:
        pass
    return 1
