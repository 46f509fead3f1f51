"""What an autoencoder makes of pictures: terms of its loss, figures, the scale of its latents, a sheet.

All of it is for `AutoencoderKL` and for `VQModel`. The latents of a `VQModel` are those before quantisation: they are
what a UNet is trained on, and the decoder quantises (Rombach et al. 2022, section 3.1 and appendix G).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seecoder.base_model.latents import encode_moments
from seecoder.base_model.loading import load_part
from train.sources.world_data import chunks, to_model_range


def reconstruction_terms(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Mean absolute, squared, and gradient difference of (N, C, H, W) pictures."""
    difference = output - target
    down, across = difference.diff(dim=2), difference.diff(dim=3)
    return {
        "absolute": difference.abs().mean(),
        "squared": difference.square().mean(),
        "gradient": down.abs().mean() + across.abs().mean(),
    }


def codebook_figures(codes: Tensor, size: int) -> dict[str, Tensor]:
    """How a codebook is used.

    Args:
        codes: Numbers of the vectors that were taken, of any shape.
        size: Vectors of the codebook.

    Returns:
        `codebook_usage`, the fraction of the vectors that was taken at all, and `codebook_perplexity`, the exponential
        of the entropy: how many vectors, used equally often, would say as much.
    """
    fractions = torch.bincount(codes.flatten(), minlength=size) / codes.numel()
    perplexity = torch.special.entr(fractions).sum().exp()
    return {"codebook_usage": (fractions > 0).float().mean(), "codebook_perplexity": perplexity}


@torch.no_grad()
def reconstruct(vae: Any, pixels: Tensor, batch_size: int = 64) -> Tensor:
    """Decode the latents of pictures, without noise: (N, 3, H, W) uint8 -> float32 in [-1, 1], on the CPU."""
    outputs = []
    for part in chunks(len(pixels), batch_size):
        latents = encode_moments(vae, to_model_range(pixels[part]).to(vae.device))[0]
        outputs.append(vae.decode(latents).sample.clamp(-1, 1).float().cpu())
    return torch.cat(outputs)


def mean_psnr(output: Tensor, pixels: Tensor) -> float:
    """Mean over pictures of the peak signal-to-noise ratio, in decibels.

    Args:
        output: (N, 3, H, W) in [-1, 1].
        pixels: (N, 3, H, W) uint8, what they should be.
    """
    errors = (output - to_model_range(pixels)).div(2).square().flatten(1).mean(1)
    return float((-10 * errors.log10()).mean())


@torch.no_grad()
def latent_std(vae: Any, pixels: Tensor, batch_size: int = 64) -> float:
    """Standard deviation of sampled latents over all elements; 1 / this is `scaling_factor`.

    Source: Rombach et al. (2022), appendix G.
    """
    count, total, squares = 0, 0.0, 0.0
    for part in chunks(len(pixels), batch_size):
        mean, std = (values.double() for values in encode_moments(vae, to_model_range(pixels[part]).to(vae.device)))
        count += mean.numel()
        total += float(mean.sum())
        squares += float((mean.square() + std.square()).sum())  # expected over the posterior, without drawing from it
    return (squares / count - (total / count) ** 2) ** 0.5


def check_autoencoder(vae: Any, pixels: Tensor, folder: Path, tolerance: float = 0.02, measured: bool = True) -> None:
    """Compare a written autoencoder with the one in memory, and the spread of its scaled latents, if measured, with 1.

    Raises:
        RuntimeError: Pictures differ by more than `tolerance` of the range on average, or the spread by 2 %.
    """
    written = load_part(folder, "vae", at_top=True)
    spread = latent_std(written, pixels) * written.config.scaling_factor
    if measured and not abs(spread - 1) <= 0.02:
        raise RuntimeError(f"Scaled latents of {folder} have a standard deviation of {spread:.3g}, not 1.")
    difference = float((reconstruct(written, pixels[:8]) - reconstruct(vae, pixels[:8])).abs().mean()) / 2
    if not difference <= tolerance:
        raise RuntimeError(
            f"The autoencoder in {folder} differs from the trained one by {difference:.3g} of the range."
        )
