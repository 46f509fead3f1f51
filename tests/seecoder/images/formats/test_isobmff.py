"""AVIF and HEIC: sizes, orientation, depth, profiles and transparency from the boxes; what is refused."""

import io
import struct
import sys

import numpy as np
import pillow_heif
import pytest
import torch
from PIL import Image

from seecoder.images.formats import isobmff
from seecoder.images.gate import ImageError, load_image
from tests.fixtures.images import NOISE, assert_levels, bounded, encode, refuse, stored
from tests.seecoder.images.test_colours import swapped_rgb_profile

FORMATS = ["AVIF", "HEIF"]
FINE = {
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "HEIF": {"quality": -1, "chroma": 444, "matrix_coefficients": 0},
}
RAMP = np.add.outer(np.arange(64), np.arange(96)).astype(np.uint8)
SMOOTH = np.stack([RAMP, RAMP + 40, RAMP + 90], axis=2)


@pytest.mark.parametrize("format", FORMATS)
def test_the_picture_is_that_of_its_pixels(format):
    assert_levels(load_image(encode(SMOOTH, format, **FINE[format])), SMOOTH, tolerance=4)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once_and_from_the_boxes(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(stored(SMOOTH, orientation), format, exif=exif.tobytes(), **FINE[format])
    assert (b"irot" in data or b"imir" in data) == (orientation > 1), "the writer puts it into boxes"
    assert_levels(load_image(data), SMOOTH, tolerance=4)
    image = Image.open(io.BytesIO(data))
    assert torch.equal(load_image(image), load_image(data)), "a Pillow image of the same file"


@pytest.mark.parametrize("format", FORMATS)
def test_the_limit_holds_for_sizes_in_boxes_before_a_decoder_opens_the_file(format, monkeypatch):
    data = encode(SMOOTH, format)
    monkeypatch.setattr(isobmff, "AvifImageFile", None)
    monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", None)
    larger = data.replace(struct.pack(">II", 96, 64), struct.pack(">II", 9000, 9000))
    refuse(larger, r"81,000,000 pixels \(9,000 x 9,000\); the limit is 64,000,000")


@pytest.mark.heavy
def test_a_small_size_in_front_of_a_large_heic_picture_costs_nothing():
    data = encode(Image.new("RGB", (2000, 2000)), "HEIF")
    refuse(data.replace(struct.pack(">II", 2000, 2000), struct.pack(">II", 64, 64)), "cannot be decoded")


@pytest.mark.parametrize("format", FORMATS)
def test_transparency_is_composited(format):
    alpha = np.full((64, 96), 255, np.uint8)
    alpha[:, :48] = 0
    pixels = load_image(encode(np.dstack([SMOOTH, alpha]), format, **FINE[format]), background=(0, 200, 0))
    assert_levels(pixels[:, :, :40].contiguous(), np.broadcast_to([0, 200, 0], (64, 40, 3)), tolerance=2)
    assert_levels(pixels[:, :, 56:].contiguous(), SMOOTH[:, 56:], tolerance=4)


@pytest.mark.parametrize("format", FORMATS)
def test_grey_is_read(format):
    pixels = load_image(encode(Image.fromarray(SMOOTH[..., 0]), format, quality=100))
    assert_levels(pixels, SMOOTH[..., :1].repeat(3, 2), tolerance=4)


@pytest.mark.parametrize("format", FORMATS)
def test_the_colour_profile_is_applied(format):
    options = {"icc_profile": swapped_rgb_profile(), **FINE[format]}
    red = encode(Image.new("RGB", (64, 64), (255, 0, 0)), format, **options)
    assert_levels(load_image(red), np.broadcast_to([0, 0, 255], (64, 64, 3)), tolerance=12)


def test_ten_bits_are_read_as_eight():
    deep = (SMOOTH.astype(np.uint16) << 8) | 128
    file = pillow_heif.from_bytes(mode="RGB;16", size=(96, 64), data=deep.tobytes())
    stream = io.BytesIO()
    file.save(stream, **FINE["HEIF"])
    data = stream.getvalue()
    assert pillow_heif.open_heif(data, convert_hdr_to_8bit=False).info["bit_depth"] == 10
    assert_levels(load_image(data), SMOOTH, tolerance=4)


def test_a_grid_of_tiles_is_one_picture():
    data = encode(SMOOTH, "HEIF", tile_size=32, **FINE["HEIF"])
    assert b"grid" in data
    assert_levels(load_image(data), SMOOTH, tolerance=4)
    with pytest.raises(ImageError, match=r"6,144 pixels \(96 x 64\)"):
        load_image(data, max_pixels=6143)


def test_the_first_frame_of_an_animation_is_read():
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "lime")]
    data = encode(frames[0], "AVIF", save_all=True, append_images=frames[1:], duration=50)
    assert data[8:12] == b"avis"
    assert_levels(load_image(data), np.broadcast_to([255, 0, 0], (48, 64, 3)), tolerance=4)
    with pytest.raises(ImageError, match=r"\(64 x 48\); the limit is 3,071"):
        load_image(data, max_pixels=3071)


def test_exif_with_thousands_of_huge_entries_is_not_read():
    rows = b"".join(struct.pack("<HHII", 0x9000 + place, 7, 60_000, 8) for place in range(5000))
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 5000) + rows
    data = encode(NOISE, "AVIF", xmp=b"<x/>").replace(b"mime", b"Exif")
    assert b"Exif" in data
    with bounded():
        assert load_image(data).shape == (3, 24, 32)
    for format in FORMATS:
        plain = encode(NOISE, format)
        whole = encode(NOISE, format, exif=exif) if format == "HEIF" else plain
        with bounded():
            assert torch.equal(load_image(whole), load_image(plain))


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_boxes_are_refused(format):
    data = encode(SMOOTH, format)
    refuse(data + struct.pack(">I4s", 100, b"free"), "a box reaches past the end")
    refuse(data + struct.pack(">I4s", 4, b"free"), "a box reaches past the end")
    refuse(data + struct.pack(">I4sQ", 1, b"free", 2**63), "a box reaches past the end")
    refuse(data + struct.pack(">I4s", 8, b"free") * 5000, "more than 5,000 boxes")
    table = struct.pack(">I4s", 70_000, b"iloc") + bytes(69_992)
    refuse(data + struct.pack(">I4s", 70_008, b"meta") + table, "more items than a picture has")
    refuse(data.replace(b"ispe", b"ispx"), "no box says how large")


@pytest.mark.parametrize("version", [2, 3])
def test_metadata_is_hidden_whatever_the_version_of_its_entry(version):
    """Version 3 of `infe` numbers items in 32 bits, version 2 in 16."""
    entry = struct.pack(">B3x" + "HI"[version == 3] + "H4s", version, 7, 0, b"Exif")
    assert isobmff._METADATA.sub(rb"\1none", b"infe" + entry + b"Exif") == b"infe" + entry[:-4] + b"noneExif"


@pytest.mark.parametrize("version", [0, 1])
def test_sizes_of_tracks_are_read_in_both_versions(version):
    head = struct.pack(">B", version) + bytes(75 if version == 0 else 87)
    found = isobmff._SIZE.search(b"tkhd" + head + struct.pack(">HHHH", 300, 0, 200, 0))
    assert found is not None
    assert (found["W"], found["H"]) == (b"\1\x2c", b"\0\xc8")


def test_other_files_of_boxes_are_refused():
    refuse(b"\0\0\0\x18ftypisom\0\0\2\0isommp41" + bytes(100), "a video or another file of boxes")


def test_without_its_package_a_heic_picture_says_what_is_missing(monkeypatch):
    data = encode(SMOOTH, "HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", None)
    refuse(data, r"this is an HEIC picture, which needs one more package: pip install 'seecoder\[heif\]'")
    assert load_image(encode(SMOOTH, "AVIF")).shape == (3, 64, 96), "AVIF needs none"
