"""JPEG, GIF, BMP and WebP: metadata, blocks and run lengths are never worth more than the picture."""

import contextlib
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from seecoder.images.formats import streams
from seecoder.images.formats.streams import BoundedFile
from seecoder.images.gate import ImageError, load_image
from seecoder.images.header import BadImage
from tests.fixtures.images import NOISE, assert_levels, bounded, chunk, encode, png, refuse


def segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(payload)) + payload


def exif_bomb(order: str = "<") -> bytes:
    """5,000 entries in 64 KB, each of which claims 60 KB."""
    rows = b"".join(struct.pack(order + "HHII", 0x9000 + place % 5000, 7, 60_000, 8) for place in range(5000))
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "IH", 8, 5000) + rows


def test_exif_with_thousands_of_huge_entries():
    # Without density in its JFIF header Pillow looks for one in EXIF, and would copy 300 MB.
    jpeg = encode(NOISE, "JPEG")
    with bounded(mib=200):
        header = segment(0xE1, b"Exif\0\0" + exif_bomb())
        assert load_image(jpeg[:2] + header + jpeg[20:]).shape == (3, 24, 32)
        assert load_image(png(4, 4, chunk(b"eXIf", exif_bomb(">")))).shape == (3, 4, 4)
        assert load_image(jpeg[:2] + header * 100 + jpeg[20:]).shape == (3, 24, 32)
    refuse(jpeg[:2] + header * 101 + jpeg[20:], "more than 100 EXIF blocks")


def test_jpeg_with_thousands_of_scans_is_refused():
    data = encode(NOISE, "JPEG", progressive=True)
    scan = data.index(b"\xff\xda")
    end = data.index(b"\xff", scan + 2 + data[scan + 3])
    refuse(data[:scan] + data[scan:end] * 5000 + data[end:], "more than 100 scans")


def test_jpeg_with_two_frames_is_refused():
    data = encode(NOISE, "JPEG")
    frame = data.index(b"\xff\xc0")
    larger = segment(0xC0, struct.pack(">BHHB", 8, 9000, 9000, 3) + b"\1\x11\0\2\x11\0\3\x11\0")
    refuse(data[:frame] + larger + data[frame:], "cannot be decoded")


def test_jpeg_of_nothing_but_segments_is_refused():
    refuse(b"\xff\xd8" + segment(0xFE, b"") * 200_000, "truncated")


def test_jpeg_with_padding_and_junk_between_segments_is_read():
    data = encode(NOISE, "JPEG")
    junk = data[:2] + b"\xff\xff\xff" + data[3:20] + b"\0\1\2junk" + data[20:]
    np.testing.assert_array_equal(load_image(junk), load_image(data))


def test_what_follows_the_picture_is_not_read():
    data = encode(NOISE, "JPEG")
    assert torch.equal(load_image(data + b"\xff\xda\xff\xd8 trailing" * 1000), load_image(data))


def test_the_first_picture_of_a_phone_is_read_whatever_follows_it():
    data = encode(NOISE, "MPO", save_all=True, append_images=[NOISE.rotate(180)])
    film = b"\0\0\0\x18ftypmp42" + b"\xff\xda" * 500 + b"SEFT"
    for whole in (data, data + film):
        assert load_image(whole).shape == (3, 24, 32)
        assert torch.equal(load_image(whole), load_image(data[: data.index(b"\xff\xd9\xff\xd8") + 2]))


def gif(canvas: tuple[int, int], frame: tuple[int, int]) -> bytes:
    return (
        b"GIF89a" + struct.pack("<HHBBB", *canvas, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\2\0;"
    )


def palette_image() -> Image.Image:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    return image


def test_gif_frame_smaller_than_its_canvas_leaves_the_rest_clear():
    data = bytearray(encode(palette_image(), "GIF"))
    struct.pack_into("<HH", data, 6, 5, 2)  # the canvas; the frame stays 3 x 1 at the top left
    expected = np.full((2, 5, 3), 9)
    expected[0, :3] = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert_levels(load_image(bytes(data), background=(9, 9, 9)), expected)


def test_gif_frame_beyond_the_canvas_grows_it_within_the_limit():
    data = bytearray(encode(NOISE, "GIF"))
    struct.pack_into("<HH", data, 6, 1, 1)
    assert load_image(bytes(data)).shape == (3, 24, 32)


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (0, 0)])
def test_gif_sizes_of_zero_are_refused(width, height):
    refuse(gif((width, height), (width, height)), "cannot be decoded|no pixels")


def test_gif_of_nothing_but_tiny_blocks_is_given_up():
    head = b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0, 0, 0)
    with bounded(seconds=4):
        refuse(head + b"!\xfe" + b"\xff" * 256 * 100_000, "more parts than a picture")
    refuse(head + b"!\xf0" + b"\1\0\0!\xf0" * 5000, "more parts than a picture")
    refuse(head + bytes(3_000_000), "more parts than a picture")


def test_gif_stray_bytes_and_comments_are_passed_over():
    data = encode(NOISE, "GIF", comment=b"a comment")
    frame = data.index(b",", 13 + 768)
    again = data[:frame] + b"\0\1" + data[frame:] + b"trailing" * 1000
    assert torch.equal(load_image(again), load_image(encode(NOISE, "GIF")))


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
def test_bmp_sizes_of_zero_are_refused(width, height):
    refuse(bmp(width, height, 0, b""), "cannot be decoded")


def test_bmp_negative_width_is_refused():
    refuse(bmp(-8, 8, 0, bytes(1000)), "4,294,967,288 x 8")


def test_a_bounded_file_has_an_end_and_only_so_many_parts(monkeypatch):
    file = BoundedFile(b"abc")
    assert file.read(0) == b""
    assert file.read(2) + file.read(2) == b"abc"
    with pytest.raises(BadImage, match="truncated"):
        file.read(1)
    monkeypatch.setattr(BoundedFile, "max_reads", 2)
    many = BoundedFile(b"abc")
    assert many.read(1) + many.read(1) == b"ab"
    with pytest.raises(BadImage, match="more parts than a picture"):
        many.read(1)


def test_webp_chunks_past_the_end():
    data = bytearray(encode(NOISE, "WEBP"))
    struct.pack_into("<I", data, 16, 2**31)
    refuse(bytes(data), "cannot be decoded")


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"save_all": True, "append_images": [NOISE.rotate(90)]}])
def test_the_size_of_every_kind_of_file_is_known_before_it_is_opened(options, monkeypatch):
    data = encode(NOISE, "WEBP", **options)
    monkeypatch.setattr(streams, "WebPImageFile", None)
    with pytest.raises(ImageError, match=r"768 pixels \(32 x 24\); the limit is 767"):
        load_image(data, max_pixels=767)


def test_webp_without_a_picture_is_refused():
    refuse(b"RIFF\x16\0\0\0WEBPJUNK\x0a\0\0\0" + bytes(10), "no WebP picture")
