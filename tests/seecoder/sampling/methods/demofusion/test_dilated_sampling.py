"""The blur of the lattices, and the statistics that it must not change."""

import pytest
import torch

from seecoder.sampling.methods.demofusion.dilated_sampling import blur, dilated_path, statistics, with_statistics


def gaussian_kernel(size: int, std: float) -> torch.Tensor:
    """Normalised one-dimensional Gaussian of `size` taps, by its formula."""
    places = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    kernel = torch.exp(-0.5 * (places / std) ** 2)
    return kernel / kernel.sum()


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize("taps", [(1, 1), (3, 3), (5, 3), (1, 7)])
def test_check_09_the_blur_is_the_gaussian_of_its_formula(padding, taps) -> None:
    """Also at the borders, where the picture is reflected or followed by zeros."""
    latents = torch.randn((2, 4, 12, 14), dtype=torch.float64)
    rows, columns = (gaussian_kernel(length, 0.8) for length in taps)
    outer = (rows[:, None] * columns[None, :]).expand(4, 1, *taps)
    margins = [taps[1] // 2, taps[1] // 2, taps[0] // 2, taps[0] // 2]
    padded = torch.nn.functional.pad(latents, margins, mode="constant" if padding == "zeros" else padding)
    direct = torch.nn.functional.conv2d(padded, outer, groups=4)
    assert torch.allclose(blur(latents, taps, 0.8, padding), direct, atol=1e-12)


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize("std", [0.0, 1e-4])
def test_check_09_the_blur_becomes_nothing_as_its_width_does(padding, std) -> None:
    latents = torch.randn((2, 4, 12, 14))
    assert torch.equal(blur(latents, (5, 7), std, padding), latents)


def test_check_09_the_blur_keeps_constants() -> None:
    constant = torch.full((2, 4, 12, 14), 3.0, dtype=torch.float64)
    assert torch.allclose(blur(constant, (5, 5), 0.8, "reflect"), constant, atol=1e-12)
    assert torch.allclose(blur(constant, (5, 5), 0.8, "zeros")[..., 2:-2, 2:-2], constant[..., 2:-2, 2:-2], atol=1e-12)


@pytest.mark.parametrize(("size", "strides"), [((8, 10), (1, 1)), ((16, 16), (2, 2)), ((24, 16), (3, 2))])
def test_lattices_are_about_as_large_as_the_base(size, strides) -> None:
    path = dilated_path(size, (8, 8), 2, lambda step: 0.8, "reflect")
    views = path.views(None, 0)
    assert {(view.row_stride, view.column_stride) for view in views} == {strides}
    assert sum(view.height * view.width for view in views) == size[0] * size[1]


def test_check_09_statistics_are_restored_for_every_picture() -> None:
    latents = torch.randn((3, 4, 12, 12), dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.1]).view(3, 1, 1, 1)
    restored = with_statistics(blur(latents, (3, 3), 0.8, "reflect"), *statistics(latents))
    for before, after in zip(statistics(latents), statistics(restored), strict=True):
        assert torch.allclose(before, after, atol=1e-12)


def test_check_09_blurred_white_noise_keeps_39_percent_of_its_std() -> None:
    noise = torch.randn((1, 1, 512, 512), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(blur(noise, (3, 3), 0.8, "reflect").std()) == pytest.approx(0.39, abs=0.005)
