"""Which reader a file goes to, and that huge canvases are refused from the header."""

import struct

import pytest
from PIL import Image

from seecoder.images.decoding import is_image_file
from seecoder.images.gate import ImageError, load_image
from tests.fixtures.images import UPRIGHT, encode, png, refuse


@pytest.mark.parametrize("format", ["PPM", "TGA", "ICO", "PCX", "EPS", "JPEG2000", "PDF", "ICNS", "DDS", "SGI"])
def test_formats_off_the_list_are_refused(format):
    with pytest.raises(ImageError, match="JPEG, PNG, WEBP, TIFF, BMP, GIF, AVIF and HEIC are read"):
        load_image(encode(Image.new("RGB", (64, 64)), format))


def segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(payload)) + payload


def gif(canvas: tuple[int, int], frame: tuple[int, int]) -> bytes:
    return (
        b"GIF89a" + struct.pack("<HHBBB", *canvas, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\2\0;"
    )


@pytest.mark.parametrize(
    "data",
    [
        png(20_000, 20_000, rows=b""),
        png(2**31 - 1, 2**31 - 1, rows=b""),
        b"\xff\xd8" + segment(0xC0, struct.pack(">BHHB", 8, 65535, 65535, 1) + b"\1\x11\0") + b"\xff\xda\0\2\xff\xd9",
        gif((65535, 65535), (1, 1)),
        gif((1, 1), (65535, 65535)),
        b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\2\0\0\0\xff\xff\xff\xff\xff\xff",
        b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\x00\xff\x3f\x00",
        b"RIFF\x12\0\0\0WEBPVP8L\x05\0\0\0\x2f\xff\xff\xff\x0f\0",
        b"BM" + struct.pack("<IHHIIiiHHI", 0, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 8, 1) + bytes(20 + 1024),
    ],
)
def test_huge_canvases_are_refused_from_the_header(data):
    refuse(data, "the limit is 64,000,000|DecompressionBombError")


def test_files_are_told_by_how_they_begin(tmp_path):
    path = tmp_path / "file"
    for format in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"):
        path.write_bytes(encode(UPRIGHT, format)[:64])
        assert is_image_file(path)
    for head in (b"", b"# notes", encode(Image.new("RGB", (8, 8)), "PPM")):
        path.write_bytes(head)
        assert not is_image_file(path)


def test_files_are_told_by_their_first_bytes(tmp_path):
    (tmp_path / "picture.txt").write_bytes(encode(Image.fromarray(UPRIGHT), "PNG"))
    (tmp_path / "text.png").write_text("text")
    found = {path.name: is_image_file(path) for path in (*tmp_path.iterdir(), tmp_path, tmp_path / "none")}
    assert found == {"picture.txt": True, "text.png": False, tmp_path.name: False, "none": False}
