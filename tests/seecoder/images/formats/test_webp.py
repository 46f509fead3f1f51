"""WebP: the canvas is refused before it is allocated."""

import struct

import pytest

from seecoder.images.formats import webp
from seecoder.images.gate import ImageError, load_image
from tests.fixtures.images import NOISE, encode, refuse


def test_webp_chunks_past_the_end():
    data = bytearray(encode(NOISE, "WEBP"))
    struct.pack_into("<I", data, 16, 2**31)
    refuse(bytes(data), "cannot be decoded")


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"save_all": True, "append_images": [NOISE.rotate(90)]}])
def test_the_size_of_every_kind_of_file_is_known_before_it_is_opened(options, monkeypatch):
    data = encode(NOISE, "WEBP", **options)
    monkeypatch.setattr(webp, "WebPImageFile", None)
    with pytest.raises(ImageError, match=r"768 pixels \(32 x 24\); the limit is 767"):
        load_image(data, max_pixels=767)


def test_webp_without_a_picture_is_refused():
    refuse(b"RIFF\x16\0\0\0WEBPJUNK\x0a\0\0\0" + bytes(10), "no WebP picture")
