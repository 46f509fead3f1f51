"""Bytes of colour of samples' pictures, and when torchvision may decode them."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from data.shards.reading import levels
from seecoder.images.colours import rasterise
from seecoder.images.gate import ImageError, load_image, open_image
from tests.fixtures.images import encode, png


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_eight_bits_stay_eight_bits_and_all_else_is_as_load_image_has_it(mode: str):
    colours = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    content = encode(np.asarray(Image.fromarray(colours).convert(mode)), "PNG")
    found = levels.load_levels(content)
    assert (found.dtype, found.shape) == (torch.uint8, (3, 12, 9))
    assert torch.equal(found.float().div(255), load_image(content))
    transparent = encode(np.dstack([colours, colours[..., :1]]), "PNG")
    assert torch.equal(levels.load_levels(transparent), load_image(transparent))
    with pytest.raises(ImageError, match="limit"):
        levels.load_levels(content, max_pixels=50)


def photograph(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Smooth shapes with some grain, which no decoder gets right by chance."""
    random = np.random.default_rng(height * width)
    coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((width, height))
    grain = random.normal(0, 9, (height, width, 3))
    return Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).convert(mode)


def outcome(data: bytes) -> bytes | str:
    """Pixels, or why there are none."""
    try:
        return levels.load_levels(data).numpy().tobytes()
    except ImageError as error:
        return str(error)


@pytest.fixture
def by_torchvision(monkeypatch) -> list[str]:
    """Modes of the files that torchvision is given."""
    assert levels._equals_pillow(), "it is installed, and gives Pillow's bytes"
    given, real = [], levels._by_torchvision
    monkeypatch.setattr(levels, "_by_torchvision", lambda data, mode: given.append(mode) or real(data, mode))
    return given


PLAIN = [{"subsampling": kind} for kind in range(3)] + [{"quality": 5}, {"optimize": True}, {"restart_marker_rows": 1}]


@pytest.mark.parametrize("options", PLAIN, ids=str)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_plain_jpeg_is_torchvisions_with_pillows_bytes(mode, options, by_torchvision):
    for height, width in ((1, 1), (7, 5), (16, 16), (33, 47), (160, 91)):
        data = encode(photograph(height, width, mode), "JPEG", **options)
        pillow = open_image(data, 10**6)
        assert np.array_equal(levels.decode(open_image(data, 10**6), data), rasterise(pillow))
    assert by_torchvision == [mode] * 5


def test_a_picture_that_is_no_sample_does_not_wait_for_torchvision(by_torchvision):
    load_image(encode(photograph(33, 47, "RGB"), "JPEG"))
    assert by_torchvision == []


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"progressive": True}),
        ("CMYK", {}),
        ("RGB", {"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()}),
    ],
    ids=["progressive", "CMYK", "profile"],
)
def test_other_jpeg_is_pillows(mode, options, by_torchvision):
    data = encode(photograph(33, 47, mode), "JPEG", **options)
    assert levels.load_levels(data).shape == (3, 33, 47)
    assert levels.load_levels(png(4, 4)).shape == (3, 4, 4)
    assert by_torchvision == []


def test_turned_and_damaged_jpeg_is_as_pillow_has_it(monkeypatch, by_torchvision):
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encode(photograph(40, 56), "JPEG", exif=exif)
    random = np.random.default_rng(0)
    files = [whole, *(whole[:length] for length in random.integers(2, len(whole), 60))]
    files += [data + b"\xff\xd9" for data in files[1:]]
    for _ in range(300):
        changed = bytearray(whole)
        changed[random.integers(len(whole))] ^= 1 << random.integers(8)
        files.append(bytes(changed))
    ours = [outcome(data) for data in files]
    assert len(by_torchvision) > 200
    monkeypatch.setattr(levels, "_equals_pillow", lambda: False)
    pillows = [outcome(data) for data in files]
    assert ours == pillows
    refused = [found for found in ours if isinstance(found, str)]
    assert len(refused) > 60
    assert all(isinstance(found, str) for found in ours[1:61]), "what lost its end is refused, never half grey"


@pytest.mark.parametrize("found", [None, np.zeros((37, 51, 3), np.uint8)], ids=["no decoder", "other bytes"])
def test_a_decoder_that_is_not_there_or_rounds_otherwise_is_not_used(monkeypatch, found):
    monkeypatch.setattr(levels, "_by_torchvision", lambda *_: found)
    assert not levels._equals_pillow.__wrapped__()
