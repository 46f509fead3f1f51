"""Pictures out: exact levels, whole files."""

import numpy as np
import pytest
import torch
from PIL import Image

from seecoder.images.gate import load_image
from seecoder.images.saving import safe_name, save_image, to_pil, without_variations
from tests.fixtures.images import UPRIGHT, assert_levels


def test_to_pil_rounds_to_the_nearest_level():
    pixels = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0]).repeat(3, 2, 1)
    assert np.asarray(to_pil(pixels)).tolist() == [[[0] * 3, [0] * 3, [1] * 3, [255] * 3]] * 2
    assert to_pil(pixels.bfloat16()).size == (4, 2)


def test_to_pil_and_back_is_exact():
    assert_levels(load_image(to_pil(load_image(UPRIGHT))), UPRIGHT)


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (torch.zeros(1, 3, 4, 4), "3, H, W"),
        (torch.zeros(4, 4, 3), "3, H, W"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "float"),
        (torch.full((3, 4, 4), 2.0), "from 2 to 2"),
        (torch.full((3, 4, 4), float("nan")), "nan"),
        (torch.zeros(3, 0, 4), "3, H, W"),
    ],
)
def test_to_pil_refuses_what_is_no_picture(pixels, reason):
    with pytest.raises(ValueError, match=reason):
        to_pil(pixels)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".PNG"])
def test_save_and_load(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    smooth = load_image(np.linspace(0, 1, 32 * 32).reshape(32, 32))
    save_image(smooth, path)
    assert (load_image(path) - smooth).abs().max() < (0.003 if suffix.lower() == ".png" else 0.03)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_saving_transparency_as_jpeg_composites_on_white(tmp_path):
    save_image(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), tmp_path / "a.jpg")
    assert load_image(tmp_path / "a.jpg").min() > 0.98
    save_image(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as kept:
        assert kept.mode == "RGBA"


def test_saving_refuses_before_writing(tmp_path):
    pixels = torch.zeros(3, 4, 4)
    with pytest.raises(ValueError, match="must end with one of"):
        save_image(pixels, tmp_path / "a.tiff")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        save_image(pixels, tmp_path / "absent" / "a.png")
    with pytest.raises(ValueError, match="at most 16,383 a side"):
        save_image(torch.zeros(3, 1, 16_384), tmp_path / "a.webp")
    assert not list(tmp_path.iterdir())


def test_failed_save_leaves_the_old_picture(tmp_path, monkeypatch):
    save_image(torch.zeros(3, 4, 4), tmp_path / "a.png")

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space"):
        save_image(torch.ones(3, 4, 4), tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").max() == 0
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc/passwd", "etc-passwd"),
        ("", "picture"),
        ("猫.png", "png"),
        ("a b\x00c", "a-b-c"),
        ("x" * 99, "x" * 40),
    ],
)
def test_names_become_safe(name, safe):
    assert safe_name(name) == safe


def test_results_beside_inputs_are_told_from_them(tmp_path):
    made = [tmp_path / name for name in ("0001-cat-seed0.png", "0001-cat-seed0-stage1.png", "sheet.png")]
    (tmp_path / "settings.json").touch()
    assert without_variations([tmp_path / "cat.png", *made]) == [tmp_path / "cat.png"]
    assert without_variations(made) == made[:1]
    (tmp_path / "settings.json").unlink()  # then the sheet is a picture like others
    assert without_variations(made) == made[2:]
