"""Filters and statistics of latents: the blur before dilated sampling, the resize between phases, moment matching."""

import torch
from torch.nn import functional

from seecoder.sampling.views import Size


def gaussian_kernel(size: int, deviation: float, dtype: torch.dtype) -> torch.Tensor:
    """Normalised one-dimensional Gaussian of `size` taps (odd); a delta as `deviation` goes to 0."""
    places = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    kernel = torch.exp(-0.5 * (places / max(deviation, 1e-6)) ** 2)
    return (kernel / kernel.sum()).to(dtype)


def blur(latents: torch.Tensor, taps: Size, deviation: float, padding: str) -> torch.Tensor:
    """Depthwise separable Gaussian blur of (B, C, H, W) with `taps` odd taps along rows and columns."""
    channels = latents.shape[1]
    pad = [taps[1] // 2, taps[1] // 2, taps[0] // 2, taps[0] // 2]
    padded = functional.pad(latents, pad, mode="constant" if padding == "zeros" else padding)
    vertical = gaussian_kernel(taps[0], deviation, latents.dtype).to(latents.device).view(1, 1, -1, 1)
    horizontal = gaussian_kernel(taps[1], deviation, latents.dtype).to(latents.device).view(1, 1, 1, -1)
    blurred = functional.conv2d(padded, vertical.expand(channels, -1, -1, -1), groups=channels)
    return functional.conv2d(blurred, horizontal.expand(channels, -1, -1, -1), groups=channels)


def with_statistics(latents: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """Each picture of (B, C, H, W) shifted and scaled to the given mean and deviation, (B, 1, 1, 1) each."""
    own_mean, own_deviation = statistics(latents)
    return (latents - own_mean) / own_deviation * deviation + mean


def statistics(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of every picture over channels and cells, (B, 1, 1, 1) each."""
    axes = (1, 2, 3)
    return latents.mean(dim=axes, keepdim=True), latents.std(dim=axes, keepdim=True)


def resized(latents: torch.Tensor, size: Size) -> torch.Tensor:
    """Bicubic resize of clean latents (B, C, H, W) to `size`."""
    if tuple(latents.shape[-2:]) == size:
        return latents
    return functional.interpolate(latents, size=size, mode="bicubic", align_corners=False)
