"""What the readers of all formats share: the reason for refusing a file, limits, EXIF orientation."""

import functools
import logging
import struct

import numpy as np

_log = logging.getLogger(__name__)

# Larger than any profile in use (press profiles reach 4 MB); an ICC profile in JPEG cannot exceed 16.6 MB anyway.
MAX_PROFILE_BYTES = 16 * 1024 * 1024


class BadImage(ValueError):
    """A reason for refusing an image, without the name of its source: `load_image` adds that."""


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse an image that is empty or has more than `max_pixels` pixels."""
    if width < 1 or height < 1:
        raise BadImage(f"its size is {width} x {height}: it has no pixels")
    if width * height > max_pixels:
        raise BadImage(
            f"it has {width * height:,} pixels ({width:,} x {height:,}); the limit is {max_pixels:,}. "
            "Resize it, or pass a larger `max_pixels` if you trust the source (in Python to `load_image`, whose result "
            "every call takes)"
        )


@functools.cache
def warn_of_frames() -> None:
    """Say once per process what happens to animations; a data set may hold a million of them."""
    _log.warning("there are pictures of several frames or pages: of such files the first is used (said once)")


def unpack(layout: str, data: bytes, position: int) -> tuple[int, ...]:
    """Integers at `position`, in the layout of the `struct` module; a file that ends before them is a `BadImage`."""
    if position < 0 or position + struct.calcsize(layout) > len(data):
        raise BadImage("the file is truncated: it ends inside a header")
    return struct.unpack_from(layout, data, position)


def read_directory(data: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """The first directory of a TIFF file, or of an EXIF block, which is one.

    Returns:
        Tags, types, counts and values (or where these lie) of its entries, and where it ends.
    """
    order = "<" if data.startswith(b"II") else ">"
    (start,) = unpack(order + "I", data, 4)
    (count,) = unpack(order + "H", data, start)
    unpack(f"{12 * count}x", data, start + 2)
    entries = np.frombuffer(data, ",".join(order + kind for kind in ("u2", "u2", "u4", "u4")), count, start + 2)
    return entries["f0"], entries["f1"], entries["f2"], entries["f3"], start + 2 + 12 * count


def orientation_from_exif(exif: bytes) -> int:
    """Orientation tag (0x0112) of the first directory of an EXIF block (EXIF 2.32, section 4.6.4), 1 if there is none.

    Only this tag is read: a block of 64 KB can hold thousands of tags that each claim 60 KB, which makes general EXIF
    readers expensive. Damaged EXIF is no reason to refuse the image, so it counts as absent.
    """
    try:
        tags, types, _, values, _ = read_directory(exif.removeprefix(b"Exif\0\0"))
    except BadImage:
        return 1
    # SHORT as the standard says, in the first two of four bytes, or LONG as some cameras write.
    found = values[(tags == 0x0112) & ((types == 3) | (types == 4))].tolist()
    orientation = found[0] % 65536 or found[0] >> 16 if found else 1
    return orientation if 1 <= orientation <= 8 else 1
