"""JPEG: metadata is never worth more than the picture."""

import struct

import numpy as np
import torch

from seecoder.images.gate import load_image
from tests.fixtures.images import NOISE, bounded, chunk, encode, png, refuse


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
