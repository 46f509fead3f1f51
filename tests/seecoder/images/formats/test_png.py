"""PNG: what is unpacked, and which colour is transparent."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from seecoder.images.formats import png as _png
from seecoder.images.gate import load_image
from tests.fixtures.images import NOISE, assert_levels, bounded, chunk, encode, png, refuse

BOMB = zlib.compress(bytes(150_000_000), 1)


def test_text_that_unpacks_to_much_is_not_unpacked():
    texts = [chunk(b"zTXt", b"a\0\0" + BOMB), chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB)]
    with bounded(mib=100):
        assert load_image(png(4, 4, *texts * 3)).shape == (3, 4, 4)


def test_profile_that_unpacks_to_much_is_passed_over():
    with bounded(mib=100):
        assert load_image(png(4, 4, chunk(b"iCCP", b"a\0\0" + BOMB))).shape == (3, 4, 4)


def test_picture_cut_into_very_many_empty_chunks():
    whole = png(4, 4)
    with bounded():
        assert load_image(whole[:33] + chunk(b"IDAT") * 50_000 + whole[33:]).shape == (3, 4, 4)


def test_png_with_a_wrong_checksum_is_refused():
    data = bytearray(encode(NOISE, "PNG"))
    data[data.index(b"IDAT") + 20] ^= 1
    refuse(bytes(data), "checksum of chunk b'IDAT'")


def test_png_with_a_damaged_text_is_read():
    data = bytearray(png(4, 4, chunk(b"tEXt", b"hello")))
    data[data.index(b"hello")] ^= 1
    assert load_image(bytes(data)).shape == (3, 4, 4)


@pytest.mark.parametrize(
    "data",
    [
        png(4, 4)[:8] + png(4, 4)[33:],
        png(4, 4, rows=b""),
        png(4, 4, rows=b"no zlib at all"),
        png(4, 4)[:8] + chunk(b"IHDR", b"\0\0\0\4") + png(4, 4)[33:],
        png(4, 4)[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 3, 7, 0, 0, 0)) + png(4, 4)[33:],
        png(4, 4)[:33] + chunk(b"IEND"),
    ],
)
def test_png_without_its_parts_is_refused(data):
    refuse(data)


def test_sixteen_bit_colour_is_read_with_its_upper_eight_bits():
    values = np.array([[[0, 255, 256], [511, 65535, 32768]]])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(b"\0" + values.astype(">u2").tobytes()))
    data = b"\x89PNG\r\n\x1a\n" + header + rows + chunk(b"IEND", b"")
    assert_levels(load_image(data), values >> 8)
    key = chunk(b"tRNS", struct.pack(">HHH", 511, 65535, 32768))
    clear = load_image(data[:33] + key + data[33:], background=(0, 9, 0))
    assert_levels(clear, np.array([[[0, 0, 1], [0, 9, 0]]]))


def palette_image() -> Image.Image:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    return image


def test_palette_with_transparent_index_or_alpha_table():
    one = encode(palette_image(), "PNG", transparency=1)
    assert_levels(load_image(one), np.array([[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]))
    table = encode(palette_image(), "PNG", transparency=bytes([0, 255, 51]))
    assert_levels(load_image(table, background=(0, 0, 0)), np.array([[[0, 0, 0], [0, 255, 0], [0, 0, 51]]]))
    gif = encode(palette_image(), "GIF", transparency=2)
    assert_levels(load_image(gif), np.array([[[255, 0, 0], [0, 255, 0], [255, 255, 255]]]))


def test_rgb_and_grey_with_a_transparent_colour():
    rgb = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    assert_levels(load_image(encode(rgb, "PNG", transparency=(1, 2, 3))), np.array([[[255] * 3, [4, 5, 6]]]))
    grey = np.array([[10, 20]], np.uint8)
    assert_levels(load_image(encode(grey, "PNG", transparency=20)), np.array([[[10] * 3, [255] * 3]]))
    deep = np.array([[1000, 2000]], np.uint16)
    pixels = load_image(encode(deep, "PNG", transparency=2000))
    np.testing.assert_allclose(pixels[0], [[1000 / 65535, 1]], atol=1e-7)


@pytest.mark.parametrize(("depth", "top"), [(1, 1), (2, 3), (4, 15), (8, 255)])
def test_transparent_grey_at_every_depth(depth, top):
    """Pillow widens 2 and 4 bits but not the transparent level, and so keeps what should be clear."""
    bits = "".join(f"{value:0{depth}b}" for value in (0, top)).ljust(16, "0")
    row = int(bits, 2).to_bytes(2, "big")[: -(-depth // 4)]
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, depth, 0, 0, 0, 0))
    data += chunk(b"tRNS", struct.pack(">H", top)) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    assert_levels(load_image(data, background=(9, 9, 9)), np.array([[[0] * 3, [9] * 3]]))


def test_png_of_nothing_but_tiny_chunks_is_given_up(monkeypatch):
    monkeypatch.setattr(_png, "_MAX_CHUNKS", 1000)
    whole = png(4, 4)
    refuse(whole[:33] + chunk(b"tEXt") * 1001 + whole[33:], "more than 1,000 chunks")


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (0, 0)])
def test_sizes_of_zero_are_refused(width, height):
    refuse(png(width, height), "no pixels")
