import pytest
import torch

from seecoder.sampling.filters import blur, gaussian_kernel, statistics, with_statistics


def test_check_09_the_kernel_sums_to_one_and_becomes_a_delta() -> None:
    for size in (3, 5, 7):
        kernel = gaussian_kernel(size, 0.8, torch.float64)
        assert float(kernel.sum()) == pytest.approx(1.0, abs=1e-12)
        delta = gaussian_kernel(size, 1e-4, torch.float64)
        assert delta[size // 2] == 1.0
        assert float(delta.abs().sum()) == 1.0


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
def test_check_09_the_blur_is_separable_and_keeps_constants(padding) -> None:
    kernel = gaussian_kernel(5, 0.8, torch.float64)
    latents = torch.randn((2, 4, 12, 14), dtype=torch.float64)
    outer = (kernel[:, None] * kernel[None, :]).expand(4, 1, 5, 5)
    direct = torch.nn.functional.conv2d(latents, outer, groups=4)
    blurred = blur(latents, (5, 5), 0.8, padding)
    assert torch.allclose(blurred[..., 2:-2, 2:-2], direct, atol=1e-12)
    constant = blur(torch.full_like(latents, 3.0), (5, 5), 0.8, padding)
    inside = constant if padding == "reflect" else constant[..., 2:-2, 2:-2]
    assert torch.allclose(inside, torch.full_like(inside, 3.0), atol=1e-12)


def test_check_09_statistics_are_restored_for_every_picture() -> None:
    latents = torch.randn((3, 4, 12, 12), dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.1]).view(3, 1, 1, 1)
    restored = with_statistics(blur(latents, (3, 3), 0.8, "reflect"), *statistics(latents))
    for before, after in zip(statistics(latents), statistics(restored), strict=True):
        assert torch.allclose(before, after, atol=1e-12)


def test_check_09_blurred_white_noise_keeps_39_percent_of_its_deviation() -> None:
    noise = torch.randn((1, 1, 512, 512), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(blur(noise, (3, 3), 0.8, "reflect").std()) == pytest.approx(0.39, abs=0.005)
