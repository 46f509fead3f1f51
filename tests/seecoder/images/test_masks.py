"""Masks are read by what is painted in them; control pictures have a black ground."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from seecoder.images.gate import ImageError, load_image
from seecoder.images.masks import load_control_image, load_mask
from tests.fixtures.images import encode

LEFT = np.zeros((6, 8), np.uint8)  # what every file below says: the left half counts
LEFT[:, :4] = 255


def painted(colour: tuple[int, int, int], ground: tuple[int, int, int] = (0, 0, 0)) -> Image.Image:
    """Paint on the left half; the rest is transparent, and hides `ground`."""
    image = Image.new("RGBA", (8, 6), (*ground, 0))
    image.paste((*colour, 255), (0, 0, 4, 6))
    return image


def palette() -> Image.Image:
    image = Image.fromarray(LEFT // 255, "P")
    image.putpalette([9, 9, 9, 200, 30, 30])
    return image


FILES = {
    "white on transparency": encode(painted((255, 255, 255)), "PNG"),
    "black on transparency": encode(painted((0, 0, 0), ground=(255, 255, 255)), "PNG"),
    "red on transparency": encode(painted((200, 0, 0)), "WEBP", lossless=True),
    "transparent in a palette": encode(palette(), "PNG", transparency=0),
    "transparent in a GIF": encode(palette(), "GIF", transparency=0),
    "grey and alpha": encode(painted((0, 0, 0)).convert("LA"), "PNG"),
    "alpha of a TIFF": encode(painted((9, 9, 9)), "TIFF"),
    "a transparent grey": encode(LEFT, "PNG", transparency=0),
    "grey": encode(LEFT, "PNG"),
    "colour": encode(Image.fromarray(LEFT).convert("RGB"), "PNG"),
    "opaque colour with alpha": encode(Image.fromarray(LEFT).convert("RGBA"), "PNG"),
    "one bit": encode(Image.fromarray(LEFT).convert("1"), "PNG"),
    "16 bits": encode(LEFT.astype(np.uint16) * 257, "PNG"),
    "floats": encode(LEFT.astype(np.float32) / 255, "TIFF"),
    "an array": LEFT,
    "an array of bool": LEFT > 0,
    "a tensor of bool": torch.from_numpy(LEFT > 0)[None],
    "a tensor with alpha": torch.from_numpy(np.stack([LEFT * 0, LEFT])),
}


@pytest.mark.parametrize("name", FILES)
def test_a_mask_is_read_by_what_is_painted_in_it(name):
    mask = load_mask(FILES[name])
    assert mask.dtype == torch.float32
    assert torch.equal(mask, torch.from_numpy(LEFT).float() / 255)


def test_grey_and_half_transparent_count_in_part_and_colours_by_luminance():
    grey = np.array([[0, 51, 255]], np.uint8)
    torch.testing.assert_close(load_mask(grey), torch.tensor([[0.0, 0.2, 1.0]]))
    clear = np.dstack([np.full((1, 3, 3), 255, np.uint8), grey])
    torch.testing.assert_close(load_mask(clear), torch.tensor([[0.0, 0.2, 1.0]]))
    primaries = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    torch.testing.assert_close(load_mask(primaries), torch.tensor([[0.299, 0.587, 0.114]]))


def test_a_mask_is_stretched_to_the_size_that_is_asked_for():
    mask = load_mask(LEFT, size=(3, 16))
    assert mask.shape == (3, 16)
    assert mask[:, :7].min() == 1
    assert mask[:, 9:].max() == 0
    smaller = load_mask(LEFT, size=(2, 2))
    assert smaller[:, 0].min() > 0.8
    assert smaller[:, 1].max() < 0.2


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.new("L", (8, 6)), "it is black everywhere; what shall count must be white"),
        (Image.new("RGBA", (8, 6), (2, 1, 0, 255)), "it is black everywhere"),
        (Image.new("RGBA", (8, 6), (255, 255, 255, 0)), "it is transparent everywhere; paint what shall count"),
    ],
)
def test_an_empty_mask_is_refused_by_name(tmp_path, image, reason):
    image.save(tmp_path / "mask.png")
    with pytest.raises(ImageError, match=rf"mask\.png`: {reason}"):
        load_mask(tmp_path / "mask.png")


@pytest.mark.parametrize("image", [Image.new("L", (8, 6)), Image.new("RGBA", (8, 6), (255, 255, 255, 0))])
def test_an_empty_mask_is_zero_where_it_means_something(image):
    assert load_mask(image, may_be_black=True).max() < 1e-6


def test_a_mask_that_is_white_everywhere_is_one_and_said(caplog):
    with caplog.at_level(logging.WARNING):
        assert torch.equal(load_mask(np.full((2, 2), 255, np.uint8)), torch.ones(2, 2))
    assert "white everywhere" in caplog.text
    caplog.clear()
    assert torch.equal(load_mask(torch.ones(2, 2)), torch.ones(2, 2)), "the command line has said it of the file"
    load_mask(LEFT)
    assert not caplog.text


def test_the_limit_on_pixels_holds_for_masks():
    with pytest.raises(ImageError, match="the limit is 47"):
        load_mask(FILES["grey"], max_pixels=47)
    with pytest.raises(ImageError, match="the limit is 47"):
        load_control_image(FILES["grey"], max_pixels=47)


def test_transparent_pixels_of_a_control_picture_are_black():
    lines = load_control_image(painted((255, 255, 255), ground=(255, 0, 0)))
    assert torch.equal(lines, torch.from_numpy(LEFT).float().expand(3, -1, -1) / 255)
    opaque = Image.new("RGB", (8, 6), (51, 102, 255))
    assert load_control_image(opaque)[:, 0, 0].tolist() == pytest.approx([0.2, 0.4, 1.0])


def test_black_lines_on_transparency_are_refused_since_they_would_vanish():
    with pytest.raises(ImageError, match="paint it white"):
        load_control_image(encode(painted((0, 0, 0)), "PNG"))
    assert not load_control_image(Image.new("RGB", (8, 6))).any(), "an opaque black picture is taken at its word"


@pytest.mark.parametrize("kind", [lambda map_: map_, torch.from_numpy, Image.fromarray])
def test_a_map_of_bool_is_black_and_white(kind):
    drawn = LEFT > 0
    for loaded in (load_control_image(kind(drawn)), load_image(kind(drawn))):
        assert torch.equal(loaded, torch.from_numpy(drawn).float().expand(3, -1, -1))


LABELS = (LEFT > 0).astype(np.uint8)
LABEL_KINDS = {
    "array": LABELS,
    "long array": LABELS.astype(np.int64),
    "tensor": torch.from_numpy(LABELS)[None],
    "long tensor": torch.from_numpy(LABELS).long(),
    "Pillow image": Image.fromarray(LABELS),
    "grey PNG": encode(LABELS, "PNG"),
    "colour PNG": encode(Image.fromarray(LABELS).convert("RGB"), "PNG"),
    "opaque PNG": encode(Image.merge("LA", [Image.fromarray(LABELS), Image.new("L", (8, 6), 255)]), "PNG"),
    "16 bits": encode(LABELS.astype(np.uint16), "PNG"),
}


@pytest.mark.parametrize("kind", LABEL_KINDS)
def test_zeros_and_ones_are_black_and_white_to_masks_and_controls_and_files_are_told_of(kind, caplog):
    with caplog.at_level(logging.WARNING):
        assert torch.equal(load_mask(LABEL_KINDS[kind]), torch.from_numpy(LEFT).float() / 255)
        assert caplog.text.count("its values are 0 and 1, which are read as black and white") == (
            "P" in kind or "b" in kind
        )
    assert torch.equal(load_control_image(LABEL_KINDS[kind]), (torch.from_numpy(LEFT).float() / 255).expand(3, -1, -1))


def test_few_dark_levels_are_no_labels():
    dark = np.array([[0, 1, 2]], np.uint8)
    assert load_control_image(dark).max() == np.float32(2 / 255)
    assert not load_control_image(np.zeros((6, 8), np.uint8)).any()
    with pytest.raises(ImageError, match="int64 is not understood"):
        load_mask(dark.astype(np.int64))
