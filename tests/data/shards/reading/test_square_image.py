"""Squares cut from pictures: the same for the same (seed, epoch, sample), and the pixels that they should be."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from data.shards.reading.square_image import SquareImage
from seecoder.images.gate import ImageError


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
