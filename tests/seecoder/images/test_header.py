"""Sizes, and the orientation in EXIF."""

import struct

import pytest

from seecoder.images.gate import load_image
from seecoder.images.header import BadImage, check_size, orientation_from_exif, unpack
from tests.fixtures.images import UPRIGHT, assert_levels, encode


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff",
        b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x0112, 3, 1, 9) + b"\0\0\0\0",
        b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x0112, 2, 1, 6) + b"\0\0\0\0",
        bytes(range(200, 256)),
    ],
)
def test_damaged_exif_leaves_the_picture_as_it_is(exif):
    assert_levels(load_image(encode(UPRIGHT, "PNG", exif=exif)), UPRIGHT)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
def test_orientation_is_read_in_both_byte_orders_and_types(order, kind):
    value = struct.pack(order + ("HH" if kind == 3 else "I"), *([6, 0] if kind == 3 else [6]))
    entry = struct.pack(order + "HHI", 0x0112, kind, 1) + value
    exif = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, 1) + entry
    assert orientation_from_exif(exif) == orientation_from_exif(b"Exif\0\0" + exif) == 6


def test_the_limit_on_pixels_is_inclusive():
    check_size(20, 10, max_pixels=200)
    with pytest.raises(BadImage, match=r"200 pixels \(20 x 10\); the limit is 199"):
        check_size(20, 10, max_pixels=199)
    with pytest.raises(BadImage, match="no pixels"):
        check_size(0, 10, max_pixels=199)


@pytest.mark.parametrize("position", [-1, 3, 2**70])
def test_reading_outside_of_the_file_is_a_truncated_file(position):
    assert unpack(">H", b"\0\1\0\2", 2) == (2,)
    with pytest.raises(BadImage, match="truncated"):
        unpack(">H", b"\0\1\0\2", position)
