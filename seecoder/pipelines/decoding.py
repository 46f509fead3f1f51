"""From latents to pixels, and what to do when that runs out of memory or of numbers.

A half-precision VAE can overflow, which shows as a black picture; and the decode is where a large picture first runs
out of memory. Both have a remedy that changes the result a little, so each is applied once, logged, and said in the
output.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)

_MARGIN = 16  # cells; a convolutional decoder of three upsamplings sees no farther than this
_MIN_TILE = 32  # cells; smaller tiles show

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
    upcast: bool = False,
    wrap: bool = False,
) -> tuple[torch.Tensor, list[str]]:
    """Decode latents to pixels, with one remedy each for lack of memory and for overflow.

    Args:
        vae: a diffusers autoencoder; it comes back as it was, weights, dtype and settings.
        latents: (N, C, h, w) as the UNet sees them, in [-inf, inf] but finite.
        upcast: decode a half-precision VAE in float32 from the start (SDXL's VAE asks for it).
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
    decode = partial(_decode_wrapped if wrap else _decode, vae)
    latents = unscale_latents(vae, latents)
    notes: list[str] = []
    half = next(vae.parameters()).dtype in (torch.float16, torch.bfloat16)
    if not (upcast and half):
        pixels = _decode_in_memory(vae, latents.to(next(vae.parameters()).dtype), decode, notes)
        if torch.isfinite(pixels).all():
            return pixels, notes
        if not half:
            raise RuntimeError(
                "the decoded picture contains NaN or infinity although the VAE is in float32; its weights are bad."
            )
        _say(notes, f"the decode gave NaN in {latents.dtype}; it was repeated in float32.")
    with in_float32(vae):
        pixels = _decode_in_memory(vae, latents.float(), decode, notes)
    if not torch.isfinite(pixels).all():
        raise RuntimeError("the decoded picture contains NaN or infinity, in float32 too. Use another VAE (`vae=`).")
    return pixels, notes


def _decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    return vae.decode(latents, return_dict=False)[0]


def _decode_wrapped(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Decode with some columns of the other side on both sides, and cut them off again."""
    columns = latents.shape[-1]
    margin = min(_MARGIN, columns)
    pixels = _decode(vae, torch.cat([latents[..., -margin:], latents, latents[..., :margin]], dim=-1))
    scale = pixels.shape[-1] // (columns + 2 * margin)
    return pixels[..., margin * scale : -margin * scale]


def _decode_in_memory(
    vae: Any, latents: torch.Tensor, decode: Callable[[torch.Tensor], torch.Tensor], notes: list[str]
) -> torch.Tensor:
    try:
        return decode(latents)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # Outside the handler, which would keep the failed attempt's tensors alive through the traceback.
    torch.cuda.empty_cache()
    size = "x".join(str(side) for side in latents.shape[-2:])
    if not hasattr(vae, "tiled_decode"):
        raise RuntimeError(
            f"no memory left to decode latents of {size}, and this VAE has no tiles. Ask for a smaller picture."
        )
    _say(notes, "the decode ran out of memory; it was done in overlapping tiles, which can shift tones slightly.")
    try:
        with in_tiles(vae, latents):
            return decode(latents)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise RuntimeError(
                f"no memory left to decode latents of {size}, in tiles too. Ask for a smaller picture."
            ) from error
        raise


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


@contextlib.contextmanager
def in_tiles(vae: Any, latents: torch.Tensor) -> Iterator[None]:
    """Let a VAE decode picture by picture and in tiles, small enough to make a difference for these latents.

    Args:
        vae: a diffusers autoencoder with `tiled_decode`; its settings come back afterwards.
        latents: (N, C, h, w) to be decoded.
    """
    names = ("use_tiling", "use_slicing", "tile_latent_min_size", "tile_sample_min_size")
    before = {name: getattr(vae, name) for name in names}
    scale = vae.tile_sample_min_size / vae.tile_latent_min_size
    try:
        vae.enable_slicing()
        vae.enable_tiling()
        # Tiles of the VAE's own size, unless that is so small that they would show, or so large that nothing is cut.
        own = max(_MIN_TILE, vae.tile_latent_min_size)
        vae.tile_latent_min_size = max(8, min(own, max(latents.shape[-2:]) // 2))
        vae.tile_sample_min_size = int(vae.tile_latent_min_size * scale)
        yield
    finally:
        for name, value in before.items():
            setattr(vae, name, value)


def _say(notes: list[str], note: str) -> None:
    logger.warning(note)
    notes.append(note)
