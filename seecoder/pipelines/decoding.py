"""From latents to pixels, and what to do when that runs out of memory or of numbers.

A half-precision VAE can overflow, which shows as a black picture; and the decode is where a large picture first runs
out of memory. Both have a remedy that changes the result a little, so each is applied once, logged, and said in the
output.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from seecoder.sampling import decode_in_tiles

logger = logging.getLogger(__name__)

_HALO = 12  # cells of context around a tile
_TILES = (128, 64, 48)  # cells, tried in this order
_REMEDY = {
    False: "the decode ran out of memory; it was done one picture at a time, which changes nothing else.",
    True: "the decode ran out of memory; it was done in tiles of {tile} cells, which can shift tones.",
}

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
) -> tuple[torch.Tensor, list[str]]:
    """Decode latents to pixels, with one remedy each for lack of memory and for overflow.

    Args:
        vae: a diffusers autoencoder; it comes back as it was, weights, dtype and settings.
        latents: (N, C, h, w) as the UNet sees them, in [-inf, inf] but finite.
        wrap: the left and the right border are neighbours (a closed panorama): decode them as such, or a seam shows.

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
    pixels = _decode_in_memory(vae, latents.to(dtype), wrap, notes)
    if torch.isfinite(pixels).all():
        return pixels, notes
    if dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError(
            "the decoded picture contains NaN or infinity although the VAE is in float32; its weights are bad."
        )
    _say(notes, f"the decode gave NaN in {str(dtype).removeprefix('torch.')}; it was repeated in float32.")
    with in_float32(vae):
        pixels = _decode_in_memory(vae, latents.float(), wrap, notes)
    if not torch.isfinite(pixels).all():
        raise RuntimeError("the decoded picture contains NaN or infinity, in float32 too. Use another VAE (`vae=`).")
    return pixels, notes


def _decode(vae: Any, latents: torch.Tensor, wrap: bool, tile: int | None = None) -> torch.Tensor:
    """Decode as a whole, or picture by picture in tiles of `tile` cells."""

    def decoder(part: torch.Tensor) -> torch.Tensor:
        return vae.decode(part, return_dict=False)[0]

    if tile is None and not wrap:
        return decoder(latents)
    if tile is None:
        # One tile as large as the picture, with columns of the other side on both sides.
        return decode_in_tiles(
            decoder, latents, tile=max(*latents.shape[-2:], _TILES[-1]) + 2 * _HALO, halo=_HALO, wrap=True
        )
    return torch.cat([decode_in_tiles(decoder, one, tile=tile, halo=_HALO, wrap=wrap) for one in latents.split(1)])


def _decode_in_memory(vae: Any, latents: torch.Tensor, wrap: bool, notes: list[str]) -> torch.Tensor:
    """Decode with as little as memory asks for: all at once, then in ever smaller tiles.

    Raises:
        RuntimeError: memory ran out in the smallest tiles, too.
    """
    longest = max(latents.shape[-2:])
    one_by_one = [max(longest, _TILES[-1])] if len(latents) > 1 else []
    attempts = [None, *one_by_one, *(tile for tile in _TILES if tile < longest)]
    for tile in attempts:
        try:
            pixels = _decode(vae, latents, wrap, tile)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        else:
            if tile is not None:
                _say(notes, _REMEDY[tile < longest].format(tile=tile))
            return pixels
        # Outside the handler, which would keep the failed attempt's tensors alive through the traceback.
        torch.cuda.empty_cache()
    size = "x".join(str(side) for side in latents.shape[-2:])
    raise RuntimeError(f"no memory left to decode latents of {size} cells, in tiles too. Ask for a smaller picture.")


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out, on an accelerator or in torch's CPU allocator.

    Args:
        error: what was raised.
    """
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


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


def _say(notes: list[str], note: str) -> None:
    logger.warning(note)
    notes.append(note)
