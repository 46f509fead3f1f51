"""DemoFusion's dilated sampling: every lattice of the blurred sample holds the whole picture at the native size.

Paper: Du et al., "DemoFusion", CVPR 2024, arXiv 2311.16973, Sec. 3.4, Eq. 6-8.
"""

import math
from collections.abc import Callable

import torch
from torch.nn import functional
from torchvision.transforms.v2.functional import gaussian_blur

from seecoder.sampling.path import Path
from seecoder.sampling.step import Step
from seecoder.sampling.views import Size, lattices

_MIN_STD = 1e-6  # in cells: no blur at all


def dilated_weight(kappa: float, cosine_scale_2: float) -> float:
    """c2 = kappa^a2: the weight of dilated sampling in the prediction (Eq. 8)."""
    return kappa**cosine_scale_2


def blur_std(kappa: float, cosine_scale_3: float, blur_sigma: float) -> float:
    """Sigma * c3 with c3 = 0.99 * kappa^a3 + 0.01: standard deviation of the lattices' blur, in cells (Sec. 3.4)."""
    return blur_sigma * (0.99 * kappa**cosine_scale_3 + 0.01)


def dilated_path(size: Size, base: Size, taps_per_cell: int, std: Callable[[Step], float], padding: str) -> Path:
    """The path over the lattices of a phase.

    Args:
        size: (height, width) of the phase in cells.
        base: (height, width) of the first phase; lattices are about as large.
        taps_per_cell: The blur has so many taps for every cell that a lattice leaves out, and one more.
        std: Standard deviation of the blur at a step, in cells.
        padding: "reflect" or "zeros" at the borders of the blur.
    """
    stride = (_stride(size[0], base[0]), _stride(size[1], base[1]))
    taps = (taps_per_cell * (stride[0] - 1) + 1, taps_per_cell * (stride[1] - 1) + 1)

    def prefilter(latents: torch.Tensor, step: Step) -> torch.Tensor:
        return with_statistics(blur(latents, taps, std(step), padding), *statistics(latents))

    return Path(lambda step, image: lattices(size, stride), prefilter=prefilter)


def blur(latents: torch.Tensor, taps: Size, std: float, padding: str) -> torch.Tensor:
    """Gaussian blur of every channel.

    Args:
        latents: (B, C, H, W).
        taps: Odd numbers of taps along rows and columns.
        std: Standard deviation in cells; 0 is no blur.
        padding: "reflect" or "zeros": what lies beyond the borders.
    """
    rows, columns = taps[0] // 2, taps[1] // 2
    margin = (rows, columns) if padding == "zeros" else (0, 0)
    padded = functional.pad(latents, [margin[1], margin[1], margin[0], margin[0]])
    blurred = gaussian_blur(padded, [taps[1], taps[0]], [max(std, _MIN_STD)] * 2)
    height, width = latents.shape[-2:]
    return blurred[..., margin[0] : margin[0] + height, margin[1] : margin[1] + width]


def statistics(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of every picture over channels and cells, (B, 1, 1, 1) each."""
    axes = (1, 2, 3)
    return latents.mean(dim=axes, keepdim=True), latents.std(dim=axes, keepdim=True)


def with_statistics(latents: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Each picture of (B, C, H, W) shifted and scaled to the given mean and standard deviation, (B, 1, 1, 1) each."""
    own_mean, own_std = statistics(latents)
    return (latents - own_mean) / own_std * std + mean


def _stride(length: int, base: int) -> int:
    """How many lattices interleave along an axis."""
    return max(1, math.floor(length / base + 0.5))
