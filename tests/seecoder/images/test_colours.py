"""What is made of what decoders give: colour, depth, transparency, profiles."""

import io
import itertools
import logging
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from seecoder.images.gate import ImageError, load_image
from tests.fixtures.images import UPRIGHT, assert_levels, encode, levels, tiff


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_sixteen_bit_pillow_modes(mode):
    ramp = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
    order = ">u2" if mode.endswith("B") else "<u2"
    image = Image.frombytes(mode, (30, 20), ramp.astype(order).tobytes())
    np.testing.assert_allclose(load_image(image)[0], ramp / 65535, atol=1e-7)


@pytest.mark.parametrize("mode", ["I", "I;16"])
def test_eight_bits_in_sixteen_are_nearly_black_and_said_to_be(mode, caplog):
    levels_of_eight_bits = np.arange(0, 256, dtype=np.int32 if mode == "I" else np.uint16).reshape(16, 16)
    assert load_image(Image.fromarray(levels_of_eight_bits)).max() == pytest.approx(255 / 65535)
    assert "16-bit greyscale up to 255 of 65,535 is read: nearly black" in caplog.text


def test_float_greyscale_in_range_is_taken_as_it_is():
    ramp = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    for source in (encode(ramp, "TIFF"), Image.fromarray(ramp)):
        np.testing.assert_allclose(load_image(source)[2], ramp, atol=1e-7)


def test_float_greyscale_out_of_range_is_stretched_and_said(caplog):
    ramp = np.linspace(-300, 900, 600, dtype=np.float32).reshape(20, 30)
    with caplog.at_level(logging.WARNING):
        pixels = load_image(encode(ramp, "TIFF"))
    np.testing.assert_allclose(pixels[0], (ramp + 300) / 1200, atol=1e-6)
    assert "from -300 to 900" in caplog.text


def test_thirty_two_bit_integers_keep_their_range(caplog):
    in_sixteen = np.array([[0, 1, 65535]], np.int32)
    np.testing.assert_allclose(load_image(encode(in_sixteen, "TIFF"))[0], in_sixteen / 65535, atol=1e-7)
    unsigned = np.array([[0, 2**31, 2**32 - 1]], np.uint32)
    with caplog.at_level(logging.WARNING):
        pixels = load_image(tiff(3, 1, unsigned.astype("<u4").tobytes(), t258=32))
    np.testing.assert_allclose(pixels[0], unsigned / (2**32 - 1), atol=1e-6)
    assert "stretched" in caplog.text


@pytest.mark.parametrize("value", [-5.0, 0.25, 700.0])
def test_constant_float_greyscale_is_clipped(value):
    pixels = load_image(encode(np.full((3, 4), value, np.float32), "TIFF"))
    assert pixels.unique().tolist() == [min(max(value, 0), 1)]


def test_float_tiff_with_nan_is_refused():
    with pytest.raises(ImageError, match="NaN"):
        load_image(encode(np.array([[0.1, np.nan]], np.float32), "TIFF"))


def test_sixteen_bit_ramp_keeps_every_level():
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for data in (encode(ramp, "PNG"), encode(ramp, "TIFF"), encode(ramp, "TIFF", compression="tiff_lzw")):
        pixels = load_image(data)
        assert len(pixels[0].unique()) == 65536
        torch.testing.assert_close(pixels[1], torch.from_numpy(ramp / 65535).float(), rtol=0, atol=1e-7)


ALPHA = np.array([[0, 255, 128], [1, 254, 64]], np.uint8)


def red_with_alpha() -> np.ndarray:
    return np.dstack([np.full((2, 3), 255, np.uint8), np.zeros((2, 3, 2), np.uint8), ALPHA])


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 200, 30)])
def test_rgba_is_composited_on_the_background(format, background):
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    source = encode(red_with_alpha(), format, **options)
    opacity = (ALPHA / 255)[..., None]
    expected = np.array([255, 0, 0]) * opacity + np.array(background) * (1 - opacity)
    assert_levels(load_image(source, background=background), expected)


def test_opaque_and_clear_are_exact():
    rgba = np.dstack([np.arange(256, dtype=np.uint8).reshape(16, 16)] * 3 + [np.full((16, 16), 255, np.uint8)])
    assert torch.equal(load_image(rgba, background=(7, 8, 9)), load_image(rgba[..., :3]))
    rgba[..., 3] = 0
    clear = load_image(rgba, background=(7, 8, 9))
    assert torch.equal(clear, (torch.tensor([7.0, 8.0, 9.0]) / 255).view(3, 1, 1).expand(3, 16, 16))


@pytest.mark.parametrize("mode", ["LA", "PA", "La", "RGBa"])
def test_other_alpha_modes(mode):
    image = Image.fromarray(red_with_alpha())
    image = {
        "LA": lambda: image.convert("LA"),
        "PA": lambda: image.convert("RGB").convert("P").convert("PA"),
        "La": lambda: image.convert("LA").convert("La"),
        "RGBa": lambda: image.convert("RGBa"),
    }[mode]()
    if mode == "PA":
        image.putalpha(Image.fromarray(ALPHA))
    assert image.mode == mode
    pixels = levels(load_image(image))
    assert pixels[0, 0].tolist() == [255, 255, 255], "clear shows white, whatever colour hides there"
    assert pixels[0, 1, 1] < 100, "opaque shows the red"
    if mode in ("LA", "PA"):
        assert 120 < pixels[0, 2, 1] < 180


def icc_profile(space: bytes, kind: bytes, tags: dict[bytes, bytes], connection: bytes = b"XYZ ") -> bytes:
    """A colour profile (ICC.1:2001, version 2) from its tags."""
    offset, table, body = 132 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(value))
        body += value + b"\0" * (-len(value) % 4)
    head = struct.pack(">4xI4s4s4s", 0x02400000, kind, space, connection) + b"\0" * 12 + b"acsp" + b"\0" * 28
    head += struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)  # the D50 white point
    head = head.ljust(124, b"\0")
    rest = head + struct.pack(">I", len(tags)) + table + body
    return struct.pack(">I", 4 + len(rest)) + rest


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">iii", *(round(value * 65536) for value in values))


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


def swapped_rgb_profile() -> bytes:
    """sRGB's own primaries, red and blue exchanged."""
    red, green, blue = xyz(0.4361, 0.2225, 0.0139), xyz(0.3851, 0.7169, 0.0971), xyz(0.1431, 0.0606, 0.7141)
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma(2.2))
    primaries = {b"wtpt": xyz(0.9642, 1, 0.8249), b"rXYZ": blue, b"gXYZ": green, b"bXYZ": red}
    return icc_profile(b"RGB ", b"mntr", primaries | curves)


def inverted_cmyk_profile() -> bytes:
    """No ink is black, any ink is white: a table (lut8) of two points a channel, which nothing else could look like."""
    identity = bytes(range(256))
    colours = b"".join(bytes([0 if not any(inks) else 255, 128, 128]) for inks in itertools.product((0, 1), repeat=4))
    matrix = struct.pack(">9i", *(65536 if place % 4 == 0 else 0 for place in range(9)))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + identity * 4 + colours + identity * 3
    return icc_profile(b"CMYK", b"prtr", {b"A2B0": table}, b"Lab ")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_rgb_in_another_profile_is_converted_to_srgb(format):
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(format, {})
    data = encode(Image.new("RGB", (16, 16), (255, 0, 0)), format, icc_profile=swapped_rgb_profile(), **options)
    assert_levels(load_image(data), np.broadcast_to([0, 0, 255], (16, 16, 3)), tolerance=6)
    assert torch.equal(load_image(data), load_image(Image.open(io.BytesIO(data))))


def test_profile_applies_to_colour_and_not_to_alpha():
    data = encode(Image.new("RGBA", (4, 4), (255, 0, 0, 51)), "PNG", icc_profile=swapped_rgb_profile())
    assert_levels(load_image(data, background=(0, 0, 0)), np.broadcast_to([0, 0, 51], (4, 4, 3)), tolerance=2)


def test_grey_profile():
    profile = icc_profile(b"GRAY", b"mntr", {b"wtpt": xyz(0.9642, 1, 0.8249), b"kTRC": gamma(1.0)})
    for image in (Image.new("L", (4, 4), 128), Image.new("LA", (4, 4), (128, 255))):
        pixels = levels(load_image(encode(image, "PNG", icc_profile=profile)))
        assert abs(pixels - 188).max() < 2, "half of linear light is level 188 in sRGB"


def test_srgb_profile_changes_nothing():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    every = np.arange(256 * 3, dtype=np.uint16).astype(np.uint8).reshape(16, 16, 3)
    assert_levels(load_image(encode(every, "PNG", icc_profile=profile)), every)


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_through_its_profile_and_without(format):
    options = {"quality": 100} if format == "JPEG" else {}
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert_levels(load_image(encode(cyan, format, **options)), np.broadcast_to([0, 255, 255], (16, 16, 3)), tolerance=3)
    profile = inverted_cmyk_profile()
    inked = load_image(encode(cyan, format, icc_profile=profile, **options))
    assert_levels(inked, np.full((16, 16, 3), 255), tolerance=3)
    paper = load_image(encode(Image.new("CMYK", (16, 16)), format, icc_profile=profile, **options))
    assert_levels(paper, np.zeros((16, 16, 3)), tolerance=3)


@pytest.mark.parametrize("profile", [b"not a profile", swapped_rgb_profile()[:200], inverted_cmyk_profile()])
def test_useless_profiles_are_passed_over_with_a_word(profile, caplog):
    with caplog.at_level(logging.WARNING, logger="seecoder.images"):
        assert_levels(load_image(encode(UPRIGHT, "PNG", icc_profile=profile)), UPRIGHT)
    assert "profile" in caplog.text


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"])
def test_every_pillow_mode_is_understood(mode):
    image = Image.new(mode, (4, 3))
    pixels = load_image(image)
    assert pixels.shape == (3, 3, 4)
    assert torch.isfinite(pixels).all()


def test_lab_is_converted():
    grey = Image.new("LAB", (2, 2), (136, 128, 128))
    pixels = levels(load_image(grey))
    assert abs(pixels - 127).max() < 3, "L* = 53.3 is level 127 of sRGB"
