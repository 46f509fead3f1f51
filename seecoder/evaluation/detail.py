"""How much detail a picture has, by measures that need no network: co-occurrence of greys, compression, spectrum.

All of them rise with noise as well as with detail. So they are printed beside those of the reference.
"""

from io import BytesIO
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seecoder.images.saving import to_pil

_LEVELS, _PATCH = 64, 64  # greys, and pixels a side
_LUMA = (0.299, 0.587, 0.114)


def glcm_scores(pixels: Tensor) -> dict[str, float]:
    """Co-occurrence of greys in patches of 64 x 64 pixels side by side, at 4 distances in 4 directions; means of them.

    Args:
        pixels: (3, H, W) in [0, 1].

    Returns:
        "glcm_entropy", Haralick's: of the probabilities of pairs of greys, in bits; 0 for a flat picture. "glcm_score",
        as the published program of Diffusion-4K (arXiv 2503.18352) has it: of how often each *value* stands among all
        these probabilities. Nothing for pictures below 64 pixels a side.
    """
    luma = (pixels.double().cpu() * torch.tensor(_LUMA, dtype=torch.float64).view(3, 1, 1)).sum(0)
    grey = (255 * luma).round().div(256 / _LEVELS).long()
    patches = [patch for rows in grey.split(_PATCH) for patch in rows.split(_PATCH, 1)]
    found = [_patch_entropies(patch.numpy()) for patch in patches if patch.shape == (_PATCH, _PATCH)]
    return dict(zip(("glcm_entropy", "glcm_score"), np.mean(found, axis=0).tolist(), strict=True)) if found else {}


def _patch_entropies(grey: NDArray[np.int64]) -> tuple[float, float]:
    stack = []
    for distance, angle in product((1, 2, 3, 4), (0.0, 0.25, 0.5, 0.75)):  # pixels, half turns
        down, right = round(np.sin(np.pi * angle) * distance), round(np.cos(np.pi * angle) * distance)
        one = (grey[:, ::-1] if right < 0 else grey)[: len(grey) - down, : len(grey) - abs(right)]
        other = (grey[:, ::-1] if right < 0 else grey)[down:, abs(right) :]
        stack.append(np.bincount((_LEVELS * one + other).ravel(), minlength=_LEVELS**2) / one.size)
    times = np.unique(np.stack(stack), return_counts=True)[1]
    return float(np.mean([_entropy(part) for part in stack])), _entropy(times / times.sum())


def _entropy(probabilities: NDArray[np.float64]) -> float:
    """Shannon entropy in bits."""
    some = probabilities[probabilities > 0]
    return float((some * np.log2(1 / some)).sum())


def compression_ratio(pixels: Tensor) -> float:
    """Bytes of the raw picture, 3 a pixel, by those of a JPEG of quality 95 without chroma subsampling."""
    file = BytesIO()
    to_pil(pixels).save(file, "JPEG", quality=95, subsampling=0)
    return pixels.numel() / file.tell()


def radial_power_spectrum(pixels: Tensor, bins: int = 32) -> Tensor:
    """Power of the luma over spatial frequency, averaged over direction.

    Args:
        pixels: (N, 3, H, W) in [0, 1].
        bins: Number of equal bands from 0 to the Nyquist frequency, 0.5 cycles per pixel; corners beyond are left out.

    Returns:
        (N, bins) mean power per coefficient of each band. A Hann window keeps the frame's edges out of the spectrum.
    """
    height, width = pixels.shape[-2:]
    luma = (pixels.double() * torch.tensor(_LUMA, dtype=torch.float64).view(1, 3, 1, 1)).sum(1)
    window = torch.hann_window(height, False, dtype=torch.float64)[:, None] * torch.hann_window(
        width, False, dtype=torch.float64
    )
    centred = luma - (luma * window).sum((1, 2), keepdim=True) / window.sum()
    power = torch.fft.fft2(centred * window, norm="ortho").abs().square().flatten(1)
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None, :]).flatten()
    band = (frequency * 2 * bins).long()
    inside = band < bins
    totals = torch.zeros(len(pixels), bins, dtype=torch.float64).index_add_(1, band[inside], power[:, inside])
    return totals / torch.bincount(band[inside], minlength=bins).clamp(min=1)


def spectrum_distance(pixels: Tensor, truth: Tensor) -> float:
    """Root mean square difference, in decibels over bands, of the two sets' mean radial power spectra.

    Args:
        pixels: (N, 3, H, W) pictures to judge.
        truth: (M, 3, H, W) true renderings of the same size.

    Raises:
        ValueError: The sizes differ.
    """
    if pixels.shape[-2:] != truth.shape[-2:]:
        raise ValueError(
            f"`pixels` are {tuple(pixels.shape[-2:])} and `truth` {tuple(truth.shape[-2:])}: same size needed."
        )
    return band_distance(radial_power_spectrum(pixels), radial_power_spectrum(truth))


def band_distance(spectra: Tensor, reference: Tensor) -> float:
    """`spectrum_distance` of (N, bins) and (M, bins) spectra of pictures of one size."""
    ours, theirs = (batch.mean(0).clamp(min=1e-12).log10() for batch in (spectra, reference))
    return float((10 * (ours - theirs)).square().mean().sqrt())
