"""What the walkers of picture files have in common: the facts they return, their error, and EXIF orientation."""

import struct
from dataclasses import dataclass

# Larger than any profile in use (press profiles reach 4 MB); an ICC profile in JPEG cannot exceed 16.6 MB anyway.
MAX_PROFILE_BYTES = 16 * 1024 * 1024


class BadImage(ValueError):
    """A reason for refusing a picture, without its name: `seecoder.images` knows that and adds it."""


@dataclass(frozen=True)
class Header:
    """Facts about the first picture of a file, and the reduced file that a decoder is given.

    Attributes:
        format: JPEG, PNG, WEBP, GIF, BMP or TIFF.
        width: Columns as stored, before the orientation is applied.
        height: Rows as stored.
        reduced: The file with metadata and further frames taken out.
        orientation: EXIF orientation, 1 to 8.
        icc: Embedded colour profile.
        animated: True if the file holds more than one frame or page.
        grey_levels: Largest value of 16-bit greyscale (4095 where a TIFF keeps 12 bits in 16).
        white_is_zero: True where 16-bit greyscale is stored inverted and the decoder leaves it so.
        unsigned: True where 32-bit integers are unsigned; Pillow only knows signed ones.
        covered: (top, bottom, left, right) of a GIF frame that leaves a part of the canvas empty.
    """

    format: str
    width: int
    height: int
    reduced: bytes
    orientation: int = 1
    icc: bytes | None = None
    animated: bool = False
    grey_levels: int = 65535
    white_is_zero: bool = False
    unsigned: bool = False
    covered: tuple[int, int, int, int] | None = None


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

    Only this tag is looked at: a block of 64 KB can hold thousands of tags that each claim 60 KB, which is what makes
    general EXIF readers expensive. Damaged EXIF is no reason to refuse the picture, so it counts as absent.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (start,) = unpack(order + "I", exif, 4)
        (count,) = unpack(order + "H", exif, start)
        for position in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _ = unpack(order + "HHI", exif, position)
            if tag == 0x0112 and kind in (3, 4):  # SHORT as the standard says, LONG as some cameras write
                (value,) = unpack(order + ("H" if kind == 3 else "I"), exif, position + 8)
                return value if 1 <= value <= 8 else 1
    except BadImage:
        return 1
    return 1
