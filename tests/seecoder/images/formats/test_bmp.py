"""BMP: run lengths and missing rows."""

import contextlib
import struct

import numpy as np
import pytest

from seecoder.images.gate import ImageError, load_image
from tests.fixtures.images import (
    assert_levels,
    bounded,
    refuse,
)


def bmp(width: int, height: int, compression: int, body: bytes, colours: int = 256) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, len(body), 0, 0, colours, 0)
    start = 54 + 4 * 256
    return struct.pack("<2sIHHI", b"BM", start + len(body), 0, 0, start) + info + bytes(range(256)) * 4 + body


def test_bmp_whose_jumps_allocate_gigabytes():
    refuse(bmp(60_000_000, 1, 1, b"\0\2\xff\xff" * 10), "takes too long")
    with bounded(seconds=4), contextlib.suppress(ImageError):
        load_image(bmp(65_535, 50, 1, b"\0\2\xff\xff" * 1000))


def test_bmp_run_lengths_within_time():
    with bounded(seconds=4), contextlib.suppress(ImageError):
        load_image(bmp(1000, 1000, 1, b"\1\1\0\0" * 1000))


def test_bmp_with_rows_missing():
    refuse(bmp(100, 100, 0, bytes(9999)), "the file is truncated")


ALPHA = np.array([[0, 255, 128], [1, 254, 64]], np.uint8)


def test_bmp_with_an_alpha_mask():
    rows = b"".join(bytes([0, 0, 255, alpha]) for alpha in ALPHA[::-1].ravel())  # blue, green, red, alpha; bottom up
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII", 108, 3, 2, 1, 32, 3, len(rows), 2835, 2835, 0, 0) + masks
    data = struct.pack("<2sIHHI", b"BM", 122 + len(rows), 0, 0, 122) + info.ljust(108, b"\0") + rows
    expected = np.array([255, 0, 0]) * (ALPHA / 255)[..., None]
    assert_levels(load_image(data, background=(0, 0, 0)), expected)


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (0, 0)])
def test_sizes_of_zero_are_refused(width, height):
    refuse(bmp(width, height, 0, b""), "cannot be decoded")


def test_negative_width_is_refused():
    refuse(bmp(-8, 8, 0, bytes(1000)), "4,294,967,288 x 8")
