"""From pixels to scaled latents and back, and what to do when a half-precision autoencoder overflows.

An overflow shows as a black picture. The remedy, a decode in float32, is applied once and noted in the output; so is
what `bounded_memory` does where memory is short.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seecoder.base_model.latents import scale_latents, unscale_latents
from seecoder.pipelines.bounded_memory import AUTOENCODER_MEMORY, decode_in_parts, encode_in_parts
from seecoder.pipelines.networks import working_dtype

logger = logging.getLogger(__name__)


@torch.no_grad()
def decode_latents(
    vae: Any, latents: Tensor, *, wrap: bool = False, memory: float = AUTOENCODER_MEMORY
) -> tuple[Tensor, list[str]]:
    """Decode latents to pixels, with one remedy each for lack of memory and for overflow.

    Args:
        vae: A diffusers autoencoder; it comes back as it was, weights, dtype and settings.
        latents: (N, C, h, w) as the UNet gives them; they have to be finite.
        wrap: The left and the right border are neighbours (a closed panorama): decode them as such, or a seam shows.
        memory: GiB that the decode may take; what takes more is done in parts.

    Returns:
        Pixels (N, 3, H, W), about [-1, 1], and a note for every remedy that was needed.

    Raises:
        RuntimeError: The latents, or the pixels after a decode in float32, are not finite; or memory ran out in tiles
            too.
    """
    if not torch.isfinite(latents).all():
        raise RuntimeError(
            f"the denoised latents contain NaN or infinity (UNet in {latents.dtype}). Load the base in bfloat16 or "
            "float32, or lower `guidance_scale`."
        )
    latents, notes = unscale_latents(vae, latents), []
    dtype = working_dtype(vae)  # another than that of its parameters with layerwise casting
    pixels = decode_in_parts(vae, latents.to(dtype), wrap=wrap, memory=memory, notes=notes)
    is_good = torch.isfinite(pixels).flatten(1).all(dim=1)
    if is_good.all():
        return pixels, notes
    if dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError(
            "the decoded picture contains NaN or infinity although the VAE is in float32; its weights are bad."
        )
    note = f"the decode gave NaN in {str(dtype).removeprefix('torch.')}; it was repeated in float32."
    logger.warning(note)
    notes.append(note)
    pixels = pixels.float()
    with in_float32(vae):  # the others stay as they would be alone
        pixels[~is_good] = decode_in_parts(vae, latents[~is_good].float(), wrap=wrap, memory=memory, notes=notes)
    if not torch.isfinite(pixels).all():
        raise RuntimeError("the decoded picture contains NaN or infinity, in float32 too. Use another VAE (`vae=`).")
    return pixels, notes


@contextlib.contextmanager
def in_float32(module: nn.Module) -> Iterator[None]:
    """Hold a module in float32, and give its own tensors back afterwards, bit for bit.

    Args:
        module: Any module; its parameters and buffers are the same objects before and after.

    Raises:
        RuntimeError: Offloading puts its layers back one by one as they were.
    """
    if any(hasattr(part, "_diffusers_hook") for part in module.modules()) or any(
        p.is_meta for p in module.parameters()
    ):
        raise RuntimeError(
            f"the {type(module).__name__} is offloaded layer by layer and has to work in float32. Load it in float32, "
            "or offload by model."
        )
    originals = [(tensor, tensor.data) for tensor in (*module.parameters(), *module.buffers())]
    try:
        for tensor, original in originals:
            tensor.data = original.float() if original.is_floating_point() else original
        yield
    finally:
        for tensor, original in originals:
            tensor.data = original


def vae_decoder(vae: Any, memory: float, notes: list[str], native: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """Make the sampling engine's decoder: latents as the UNet gives them to pixels in about [-1, 1].

    Args:
        vae: A diffusers autoencoder.
        memory: GiB that it may take; what takes more is done in parts.
        notes: Where a note is added about what was done in tiles or once more.
        native: (height, width) of the UNet's training in cells. Windows up to this size are decoded as a whole, with
            gradients one at a time: `SyncDiffusion` compares those that have them with one that has none.
    """

    def whole(part: Tensor) -> Tensor:
        return vae.decode(part, return_dict=False)[0]

    def call(latents: Tensor) -> Tensor:
        given = unscale_latents(vae, latents).to(vae.dtype)
        if given.requires_grad:
            parts = [checkpoint(whole, part, use_reentrant=False) for part in given.split(1)]
            return torch.cat(parts).to(latents.dtype)
        is_native = all(side <= limit for side, limit in zip(given.shape[-2:], native, strict=True))
        limit = math.inf if is_native else memory
        return decode_in_parts(vae, given, memory=limit, notes=notes).to(latents.dtype)

    return call


def vae_encoder(vae: Any, memory: float, notes: list[str]) -> Callable[[Tensor], Tensor]:
    """Make the sampling engine's encoder: pixels in [-1, 1] to the mode of the latents, as the UNet reads them.

    Args:
        vae: A diffusers autoencoder.
        memory: GiB that it may take; what takes more is done in parts.
        notes: Where a note is added about what was done in tiles or once more.
    """

    def call(pixels: Tensor) -> Tensor:
        latents = encode_in_parts(vae, pixels.to(vae.dtype), memory=memory, notes=notes)
        return scale_latents(vae, latents).to(pixels.dtype)

    return call
