"""TIFF: what honest writers make is read, what makes readers copy gigabytes is refused."""

import struct

import numpy as np
import pytest
import torch

from seecoder.images.gate import ImageError, load_image
from tests.fixtures.images import NOISE, assert_levels, bounded, encode, refuse, tiff


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_tiff_in_both_byte_orders_and_inverted(order):
    ramp = np.arange(0, 65536, 300, dtype=np.uint16)[:216].reshape(12, 18)
    data = tiff(18, 12, ramp.astype(order + "u2").tobytes(), order=order, t258=16)
    np.testing.assert_allclose(load_image(data)[0], ramp / 65535, atol=1e-7)
    if order == "<":  # Pillow reads white-is-zero at 16 bits in this byte order only
        inverted = tiff(18, 12, ramp.astype("<u2").tobytes(), t258=16, t262=0)
        np.testing.assert_allclose(load_image(inverted)[0], 1 - ramp / 65535, atol=1e-6)


def test_floats_in_colour_say_what_to_do():
    data = tiff(4, 4, bytes(4 * 4 * 12), t258=32, t262=2, t277=3, t339=3)
    refuse(data, r"this kind of TIFF .* is not read; save 8 or 16 bits a channel")


def test_twelve_bit_tiff_reaches_white():
    values = np.array([[0, 4095], [2048, 1]])
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in values.tolist())
    np.testing.assert_allclose(load_image(tiff(2, 2, packed, t258=12))[0], values / 4095, atol=1e-7)


def directory(entries: list[tuple[int, int, int, int]], body: bytes = b"") -> bytes:
    """Little-endian TIFF: eight bytes of header, `body`, the directory."""
    rows = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(entries)) + rows + b"\0" * 4


def grey_tiff(width: int = 4, height: int = 4, **changes: int) -> list[tuple[int, int, int, int]]:
    values = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: width * height}
    values |= {int(name[1:]): value for name, value in changes.items()}
    return [(tag, 4, 1, value) for tag, value in values.items() if value >= 0]


def test_huge_tiff_is_refused_from_the_header():
    refuse(directory(grey_tiff(100_000, 100_000, t279=10, t278=100_000, t259=5), bytes(10)), "the limit is 64,000,000")


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (0, 0)])
def test_sizes_of_zero_are_refused(width, height):
    refuse(directory(grey_tiff(width, height), bytes(16)), "cannot be decoded")


def test_entries_that_all_name_the_same_megabytes_are_refused():
    body = bytes(4_000_000)
    rows = [(tag, 7, len(body), 8) for tag in range(32768, 33000)]
    refuse(directory(grey_tiff() + rows, body), "claims bytes that are not there")
    refuse(directory(grey_tiff() + [(tag, 7, 1, 0) for tag in range(32768, 34000)], bytes(16)), "more than 1,000")


def test_an_entry_that_is_there_twice_is_refused():
    refuse(directory([*grey_tiff(), (273, 4, 1, 8)], bytes(16)), "twice")


def test_directories_in_a_circle():
    data = bytearray(directory(grey_tiff(), bytes(16)))
    data[-4:] = struct.pack("<I", 24)  # the next directory is this one
    with bounded():
        assert load_image(bytes(data)).shape == (3, 4, 4)


def test_exif_with_thousands_of_huge_entries_is_not_read():
    exif = struct.pack("<H", 5000) + b"".join(struct.pack("<HHII", tag, 7, 60_000, 8) for tag in range(5000))
    body = bytes(16) + exif + bytes(4)
    with bounded(mib=100):
        assert load_image(directory([*grey_tiff(), (34665, 4, 1, 24)], body)).shape == (3, 4, 4)


def test_strips_that_cover_the_picture_over_and_over_are_refused():
    offsets = struct.pack("<100000I", *[8] * 100_000)
    entries = [entry for entry in grey_tiff(4000, 4000, t278=3999) if entry[0] not in (273, 279)]
    body = bytes(16_000_000)
    lists = [(273, 4, 100_000, 8 + len(body)), (279, 4, 100_000, 8 + len(body))]
    with bounded(seconds=4), pytest.raises(ImageError, match="100,000 strips or tiles where the picture needs 2"):
        load_image(directory([*entries, *lists], body + offsets + offsets))
    lengths = struct.pack("<4000I", *[1_000_000] * 4000)
    rows = [entry for entry in grey_tiff(4, 4000, t278=1, t259=5) if entry[0] not in (273, 279)]
    lists = [(273, 4, 4000, 8), (279, 4, 4000, 8 + 16_000)]
    refuse(directory([*rows, *lists], struct.pack("<4000I", *[8] * 4000) + lengths + bytes(1_000_000)), "past the end")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"t273": 4_000_000_000}, "past the end"),
        ({"t273": -1}, "unknown data organization"),
        ({"t256": -1}, "Missing dimensions"),
        ({"t277": 60_000}, "samples per pixel"),
        ({"t278": 0}, "4 x 0 do not suit"),
        ({"t259": 34925}, "compression 34925 is not read"),
        ({"t259": 65_000}, "65000"),
        ({"t258": 77}, "unknown pixel mode"),
        ({"t273": -1, "t279": -1, "t324": 8, "t325": 16, "t322": 10**6, "t323": 9}, "1000000 x 9 do not suit"),
        ({"t273": -1, "t279": -1, "t324": 8, "t325": 16, "t322": 0, "t323": 16}, "0 x 16 do not suit"),
        ({"t278": 2}, "1 strips or tiles where the picture needs 2"),
        ({"t279": -1}, "1 strips or tiles where the picture needs 1"),
    ],
)
def test_entries_that_contradict_each_other_are_refused(changes, reason):
    refuse(directory(grey_tiff(**changes), bytes(16)), reason)


def test_too_many_strips_are_refused():
    rows = [entry for entry in grey_tiff(1, 200_000, t278=1) if entry[0] not in (273, 279)]
    body = struct.pack("<200000I", *[8] * 200_000)
    refuse(directory([*rows, (273, 4, 200_000, 8), (279, 4, 200_000, 8)], body * 2), "claims bytes that are not there")


def test_directory_outside_the_file_is_refused():
    refuse(b"II*\0" + struct.pack("<I", 10**9), "truncated")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "LA"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd"])
def test_what_pillow_writes_loads_as_the_same_picture(mode, compression):
    image = NOISE.convert(mode)
    assert torch.equal(load_image(encode(image, "TIFF", compression=compression)), load_image(image))


def test_tiff_of_64_bits_is_refused_since_only_files_of_gigabytes_need_it():
    refuse(encode(NOISE, "TIFF", big_tiff=True), r"begins with b'II\+\\x00")


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiles_and_separate_planes(order):
    """A 20 x 20 RGB picture in tiles of 16 x 16, each channel by itself, as GDAL writes it."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    padded = np.pad(pixels, ((0, 12), (0, 12), (0, 0)))
    tiles = [padded[y : y + 16, x : x + 16, c].tobytes() for c in range(3) for y in (0, 16) for x in (0, 16)]
    lists = struct.pack(order + "12I", *(8 + 256 * number for number in range(12)))
    lists += struct.pack(order + "12I3H", *[256] * 12, 8, 8, 8)
    at = 8 + 12 * 256
    entries = [(256, 20), (257, 20), (259, 1), (262, 2), (277, 3), (284, 2), (322, 16), (323, 16)]
    rows = [struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in entries]
    outside = [(258, 3, 3, at + 96), (324, 4, 12, at), (325, 4, 12, at + 48)]
    rows += [struct.pack(order + "HHII", *row) for row in outside]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", at + len(lists))
    directory = struct.pack(order + "H", len(rows)) + b"".join(rows) + bytes(4)
    assert_levels(load_image(head + b"".join(tiles) + lists + directory), pixels)
