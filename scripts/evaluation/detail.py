"""How much fine detail a picture has, to be compared with the true rendering of the same scene at the same size.

Counting objects alone rewards blur: a bicubic upscale of a good small picture has exactly one object. It has no detail,
though.
"""

import torch
from torch import Tensor


def radial_power_spectrum(pixels: Tensor, bins: int = 32) -> Tensor:
    """Power of the luma over spatial frequency, averaged over direction.

    Args:
        pixels: (N, 3, H, W) in [0, 1].
        bins: Number of equal bands from 0 to the Nyquist frequency, 0.5 cycles per pixel; corners beyond are left out.

    Returns:
        (N, bins) mean power per coefficient of each band. A Hann window keeps the frame's edges out of the spectrum.
    """
    height, width = pixels.shape[-2:]
    luma = (pixels.double() * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(1, 3, 1, 1)).sum(1)
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


def spectrum_distance(pixels: Tensor, truth: Tensor, bins: int = 32) -> float:
    """Root mean square difference, in decibels over bands, of the two sets' mean radial power spectra.

    Args:
        pixels: (N, 3, H, W) pictures to judge.
        truth: (M, 3, H, W) true renderings of the same size.
        bins: Number of bands.

    Raises:
        ValueError: The sizes differ.
    """
    if pixels.shape[-2:] != truth.shape[-2:]:
        raise ValueError(
            f"`pixels` are {tuple(pixels.shape[-2:])} and `truth` {tuple(truth.shape[-2:])}: same size needed."
        )
    ours, theirs = (radial_power_spectrum(batch, bins).mean(0).clamp(min=1e-12).log10() for batch in (pixels, truth))
    return float((10 * (ours - theirs)).square().mean().sqrt())
