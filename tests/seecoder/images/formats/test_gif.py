"""GIF: the first frame on its canvas."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from seecoder.images.gate import load_image
from tests.fixtures.images import NOISE, assert_levels, encode, refuse


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
def test_sizes_of_zero_are_refused(width, height):
    refuse(gif((width, height), (width, height)), "cannot be decoded|no pixels")


def test_gif_of_nothing_but_tiny_blocks_is_given_up():
    head = b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0, 0, 0)
    refuse(head + b"!\xfe" + b"\xff" * 256 * 100_000, "more than 4,000 blocks before")
    refuse(head + b"!\xf0" + b"\1\0\0!\xf0" * 5000, "more than 4,000 blocks before")
    refuse(head + bytes(3_000_000), "more parts than a picture")


def test_stray_bytes_and_comments_are_passed_over():
    data = encode(NOISE, "GIF", comment=b"a comment")
    frame = data.index(b",", 13 + 768)
    again = data[:frame] + b"\0\1" + data[frame:] + b"trailing" * 1000
    assert torch.equal(load_image(again), load_image(encode(NOISE, "GIF")))
