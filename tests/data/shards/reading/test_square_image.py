"""Squares cut from pictures: the same for the same (seed, epoch, sample), and the pixels that they should be."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from data.shards.buckets import Buckets
from data.shards.reading.square_image import SquareImage, UnusableSample
from seecoder.images.gate import ImageError, load_image


def encoded(pixels: np.ndarray) -> bytes:
    with io.BytesIO() as stream:
        Image.fromarray(pixels).save(stream, "PNG")
        return stream.getvalue()


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_square_of_the_right_size_is_untouched():
    pixels = noise(16, 16)
    square = SquareImage(16)({"png": encoded(pixels)}, 0, 0)["pixels"]
    assert square.dtype == torch.uint8
    assert torch.equal(square, torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize(("height", "width"), [(16, 25), (25, 16)])
def test_centre_and_random_crops_are_windows_of_the_picture(height: int, width: int):
    pixels = torch.from_numpy(noise(height, width)).permute(2, 0, 1)
    windows = [pixels[:, top : top + 16, left : left + 16] for top in range(height - 15) for left in range(width - 15)]
    sample = {"png": encoded(pixels.permute(1, 2, 0).numpy())}
    assert torch.equal(SquareImage(16)(sample, 0, 0)["pixels"], windows[4])
    random = SquareImage(16, crop="random", seed=1)
    seen = set()
    for sample_id in range(60):
        square = random(sample, 0, sample_id)["pixels"]
        seen.add(next(place for place, window in enumerate(windows) if torch.equal(square, window)))
    assert len(seen) == 10, "every place is drawn in the end"


def test_draws_belong_to_seed_epoch_and_sample():
    sample = {"png": encoded(noise(16, 200))}

    def draw(seed: int, epoch: int, sample_id: int) -> bytes:
        transform = pickle.loads(pickle.dumps(SquareImage(16, crop="random", flip=True, seed=seed)))
        return transform(sample, epoch, sample_id)["pixels"].numpy().tobytes()

    first = draw(0, 0, 0)
    assert draw(0, 0, 0) == first
    assert len({first, draw(1, 0, 0), draw(0, 1, 0), draw(0, 0, 1)}) == 4


def test_flips_half_of_the_samples():
    pixels = torch.from_numpy(noise(8, 8)).permute(2, 0, 1)
    sample = {"png": encoded(pixels.permute(1, 2, 0).numpy())}
    squares = [SquareImage(8, flip=True)(sample, 0, sample_id)["pixels"] for sample_id in range(200)]
    flipped = sum(torch.equal(square, pixels.flip(2)) for square in squares)
    assert all(torch.equal(square, pixels) or torch.equal(square, pixels.flip(2)) for square in squares)
    assert abs(flipped - 100) < 4 * np.sqrt(50)


@pytest.mark.parametrize("size", [8, 64])
def test_scaling_keeps_a_gradient_a_gradient(size: int):
    ramp = np.broadcast_to(np.linspace(0, 255, 32).astype(np.uint8)[:, None, None], (32, 32, 3))
    square = SquareImage(size)({"png": encoded(ramp)}, 0, 0)["pixels"].float()
    expected = torch.linspace(0, 255, 32)[None, None].double()
    expected = torch.nn.functional.interpolate(expected, size, mode="linear", align_corners=False)[0, 0]
    inner = slice(size // 8, -size // 8)
    assert (square[0, :, size // 2] - expected)[inner].abs().max() < 2


def test_a_hair_of_a_picture_does_not_take_gigabytes():
    assert SquareImage(512)({"png": encoded(noise(2, 20_000))}, 0, 0)["pixels"].shape == (3, 512, 512)


def test_limits():
    with pytest.raises(ImageError, match="limit"):
        SquareImage(8, max_pixels=50)({"png": encoded(noise(8, 8))}, 0, 0)
    with pytest.raises(ValueError, match="`size`=0"):
        SquareImage(0)
    with pytest.raises(ValueError, match="`crop`='left'"):
        SquareImage(8, crop="left")


def test_a_picture_is_cut_to_the_shape_of_its_bucket_and_the_encoder_sees_all_of_it():
    pixels = torch.from_numpy(noise(32, 80)).permute(2, 0, 1)
    sample = {"png": encoded(pixels.permute(1, 2, 0).numpy())}
    buckets = Buckets(resolutions=(48,), step=16)
    example = SquareImage(48, buckets=buckets)(sample, 0, 0)
    assert torch.equal(example["pixels"], pixels[:, :, 8:72]), "the bucket is 32 x 64"
    assert example["size_ids"].tolist() == [32, 80, 0, 8, 32, 64]
    assert example["frames"].shape == (3, 32, 64)
    assert abs(float(example["frames"].float().mean() - pixels.float().mean())) < 2, "squeezed, not cut"
    assert not torch.equal(example["frames"], example["pixels"])


@pytest.mark.parametrize("kind", ["bytes", "floats"])
def test_buckets_are_scaled_as_pillow_does_it_within_a_level(kind):
    levels = noise(50, 90) if kind == "bytes" else np.dstack([noise(50, 90), np.full((50, 90), 200, np.uint8)])
    sample, transform = {"png": encoded(levels)}, SquareImage(48, buckets=Buckets(resolutions=(48,), step=16))
    example, whole = transform(sample, 0, 0), (load_image(sample["png"]) * 255).round().to(torch.uint8)
    top, left, rows, columns = transform.window(whole, (32, 64), 0, 0)
    assert (rows, columns) == (45, 90)
    parts = {"pixels": whole[:, top : top + rows, left : left + columns], "frames": whole}
    for name, part in parts.items():
        scaled = Image.fromarray(part.permute(1, 2, 0).numpy()).resize((64, 32), Image.Resampling.BICUBIC)
        assert (example[name].permute(1, 2, 0).int() - torch.from_numpy(np.array(scaled)).int()).abs().max() <= 1, name


@pytest.mark.parametrize("channels", [1, 3])
def test_how_a_picture_lies_in_memory_changes_no_byte_of_what_a_bucket_gets(channels):
    draw = np.random.default_rng(0)
    for height, width, top, left in [(64, 113, 0, 5), (300, 200, 7, 0), (31, 33, 1, 1), (128, 148, 64, 0)]:
        picture = torch.from_numpy(draw.integers(0, 256, (height, width, channels), dtype=np.uint8)).movedim(2, 0)
        window = top, left, height - top, width - left
        found = SquareImage(48, buckets=Buckets(resolutions=(48,), step=16)).cut(picture, window, (48, 64), False)
        plain = picture[None, :, top:, left:].contiguous()
        assert torch.equal(found, functional.interpolate(plain, (48, 64), mode="bicubic", antialias=True)[0])


def test_a_thin_picture_is_scaled_without_a_large_one_between(monkeypatch):
    scale, sides = functional.interpolate, []
    monkeypatch.setattr(
        functional, "interpolate", lambda levels, size, **how: (sides.append(size), scale(levels, size, **how))[1]
    )
    sample = {"png": encoded(noise(20_000, 1))}
    for transform in (SquareImage(48, buckets=Buckets(resolutions=(48,), step=16)), SquareImage(48, reference="png")):
        sides.clear()
        example = transform({**sample, "png.png": sample["png"]}, 0, 0)
        shape = tuple(example["frames"].shape[1:])
        assert sides[-2:] == [(shape[0], 1), shape]


def test_sizes_and_corners_are_those_of_the_scaled_and_mirrored_picture():
    ramp = np.broadcast_to(np.linspace(0, 255, 192).astype(np.uint8)[None, :, None], (48, 192, 3))
    square = Buckets(resolutions=(96,), step=96, max_aspect=1.0)
    transform = SquareImage(96, crop="random", flip=True, buckets=square)
    seen = set()
    for sample_id in range(40):
        example = transform({"png": encoded(ramp)}, 0, sample_id)
        height, width, top, left, *shape = example["size_ids"].tolist()
        assert (height, width, top, shape) == (48, 192, 0, [96, 96])
        assert 0 <= left <= 2 * (192 - 48)
        is_flipped = transform.is_flipped(0, sample_id)
        scaled = torch.from_numpy(ramp[:, ::-1].copy() if is_flipped else ramp.copy())[0, :, 0].float()
        expected = scaled.repeat_interleave(2)[left : left + 96]
        assert (example["pixels"][0, 50].float() - expected).abs()[4:-4].max() < 3
        seen.add(is_flipped)
    assert seen == {True, False}


def test_of_a_pair_the_encoder_sees_one_and_the_loss_another_and_the_mask_goes_with_the_crop():
    target, reference = noise(16, 24), noise(40, 40)
    mask = np.zeros((16, 24, 3), np.uint8)
    mask[:, 4:10] = 255
    sample = {"png": encoded(target), "reference.png": encoded(reference), "mask.png": encoded(mask)}
    transform = SquareImage(16, reference="reference", mask="mask")
    assert {"reference.jpg", "reference.png", "mask.png"} <= transform.members
    example = transform(sample, 0, 0)
    assert torch.equal(example["pixels"], torch.from_numpy(target).permute(2, 0, 1)[:, :, 4:20])
    assert example["frames"].shape == (3, 16, 16)
    assert example["mask"].shape == (1, 16, 16)
    assert (example["mask"][0, :, :6] == 255).all()
    assert (example["mask"][0, :, 6:] == 0).all()
    whole = SquareImage(40)({"png": encoded(reference)}, 0, 0)["pixels"]
    assert torch.equal(SquareImage(40, reference="reference")(sample, 0, 0)["frames"], whole)


@pytest.mark.parametrize(
    ("member", "reason"), [("reference.png", "missing member"), ("mask.png", "missing member"), ("black", "bad mask")]
)
def test_a_pair_that_is_not_whole_is_no_sample(member: str, reason: str):
    black = encoded(np.zeros((16, 16, 3), np.uint8))
    sample = {"png": encoded(noise(16, 16)), "reference.png": encoded(noise(16, 16))}
    sample["mask.png"] = black if member == "black" else encoded(noise(16, 16))
    sample.pop(member, None)
    with pytest.raises(UnusableSample) as error:
        SquareImage(16, reference="reference", mask="mask")(sample, 0, 0)
    assert error.value.reason == reason


@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA", "P", "I;16", "CMYK"])
def test_pictures_that_need_no_scaling_are_the_levels_of_load_image(mode: str):
    picture = Image.fromarray(noise(16, 16)).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (16, 16)).astype(np.uint16))
    with io.BytesIO() as stream:
        picture.save(stream, "JPEG" if mode == "CMYK" else "PNG")
        content = stream.getvalue()
    expected = (load_image(content) * 255).round().to(torch.uint8)
    found = SquareImage(16)({"jpg": content}, 0, 0)["pixels"]
    assert torch.equal(found, expected)


def test_a_mask_is_what_is_painted_on_transparency_or_light():
    painted = np.zeros((16, 16, 4), np.uint8)
    painted[:, :8] = (0, 0, 0, 255)
    blue = np.zeros((16, 16, 3), np.uint8)
    blue[:, :8, 2] = 255
    for mask, level in ((painted, 255), (blue, 29)):
        example = SquareImage(16, mask="mask")({"png": encoded(noise(16, 16)), "mask.png": encoded(mask)}, 0, 0)
        assert (example["mask"][0, :, :8] == level).all()
        assert (example["mask"][0, :, 8:] == 0).all()
