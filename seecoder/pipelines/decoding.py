"""From latents to pixels, and what to do when a half-precision VAE overflows, which shows as a black picture.

The remedy is applied once, logged, and said in the output; so is what `autoencoding` does where memory is short.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from seecoder.pipelines.autoencoding import AUTOENCODER_MEMORY, decode

logger = logging.getLogger(__name__)

__all__ = ["decode_latents", "unscale_latents"]


def unscale_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Undo the scaling that gives the UNet latents of unit variance.

    Args:
        vae: an autoencoder whose config has `scaling_factor`, and possibly `latents_mean` and `latents_std`.
        latents: (N, C, h, w) as the UNet sees them.

    Returns:
        (N, C, h, w) as the decoder wants them.
    """
    mean, deviation = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
    if mean is None or deviation is None:
        return latents / vae.config.scaling_factor
    shape = (1, len(mean), 1, 1)  # one value a channel
    return latents * latents.new_tensor(deviation).view(shape) / vae.config.scaling_factor + latents.new_tensor(
        mean
    ).view(shape)


@torch.no_grad()
def decode_latents(
    vae: Any,
    latents: torch.Tensor,
    *,
    wrap: bool = False,
    memory: float = AUTOENCODER_MEMORY,
) -> tuple[torch.Tensor, list[str]]:
    """Decode latents to pixels, with one remedy each for lack of memory and for overflow.

    Args:
        vae: a diffusers autoencoder; it comes back as it was, weights, dtype and settings.
        latents: (N, C, h, w) as the UNet sees them, in [-inf, inf] but finite.
        wrap: the left and the right border are neighbours (a closed panorama): decode them as such, or a seam shows.
        memory: GiB that the decode may take; what takes more is done in parts.

    Returns:
        Pixels (N, 3, H, W), about [-1, 1], and a note for every remedy that was needed.

    Raises:
        RuntimeError: the latents, or the pixels after a decode in float32, are not finite; or memory ran out in tiles
            too.
    """
    if not torch.isfinite(latents).all():
        raise RuntimeError(
            f"the denoised latents contain NaN or infinity (UNet in {latents.dtype}). Load the base in bfloat16 or "
            f"float32, "
            "or lower `guidance_scale`."
        )
    latents = unscale_latents(vae, latents)
    notes: list[str] = []
    dtype = next(vae.parameters()).dtype
    pixels = decode(vae, latents.to(dtype), wrap=wrap, memory=memory, notes=notes)
    if torch.isfinite(pixels).all():
        return pixels, notes
    if dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError(
            "the decoded picture contains NaN or infinity although the VAE is in float32; its weights are bad."
        )
    note = f"the decode gave NaN in {str(dtype).removeprefix('torch.')}; it was repeated in float32."
    logger.warning(note)
    notes.append(note)
    with in_float32(vae):
        pixels = decode(vae, latents.float(), wrap=wrap, memory=memory, notes=notes)
    if not torch.isfinite(pixels).all():
        raise RuntimeError("the decoded picture contains NaN or infinity, in float32 too. Use another VAE (`vae=`).")
    return pixels, notes


@contextlib.contextmanager
def in_float32(module: nn.Module) -> Iterator[None]:
    """Hold a module in float32, and give its own tensors back afterwards, bit for bit.

    Args:
        module: any module; its parameters and buffers are the same objects before and after.
    """
    tensors = [*module.parameters(), *module.buffers()]
    originals = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            if tensor.is_floating_point():
                tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, original in zip(tensors, originals, strict=True):
            tensor.data = original
