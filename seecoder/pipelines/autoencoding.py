"""The autoencoder in bounded memory: whole, one picture at a time, or in tiles that agree.

How a picture goes through depends on its size, the data type and the limit alone, never on how much memory happens to
be free. Only where memory runs out all the same is it tried again in
smaller parts, and said.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from seecoder.sampling import decode_in_tiles, encode_in_tiles, normalised_like, shrunken

logger = logging.getLogger(__name__)

__all__ = ["AUTOENCODER_MEMORY", "TILES", "Tiles", "decode", "encode", "is_out_of_memory", "whole_gib"]

AUTOENCODER_MEMORY = 6.0  # GiB: 2048 x 2048 pixels of Stable Diffusion's in half precision, 1448 x 1448 in float32


class Tiles(NamedTuple):
    """Sizes in cells: margins cost at most 1.8 times the work (more only for closed loops hardly longer than a tile).

    The norms of the whole come on top: one tile more, and never more than half a picture.
    """

    tile: int
    halo: int
    feather: int


TILES = (Tiles(128, 12, 4), Tiles(64, 6, 2), Tiles(48, 4, 2))


class _Plan(NamedTuple):
    """How many pictures at once, and in which tiles."""

    pictures: int
    tiles: Tiles | None


def _widths(vae: Any) -> list[int]:
    """Channels from the outermost level inwards; each level but the first halves the sides."""
    config = vae.config
    return list(getattr(config, "block_out_channels", None) or getattr(config, "encoder_block_out_channels", ()))


def whole_gib(vae: Any, size: tuple[int, int], *, decodes: bool = True) -> float:
    """GiB that one picture takes as a whole, besides the weights and the workspace of convolutions.

    The most is alive in the residual layers at full resolution: on the way up three maps as wide as the second level
    (what comes in, its norm, the activation), on the way down five as wide as the first. Counted with torch's memory
    tracker on Stable Diffusion's autoencoder: 768 and 643 numbers a pixel.

    Args:
        vae: a diffusers autoencoder.
        size: (height, width) in cells.
        decodes: the way up, else the way down.

    Returns:
        GiB; 0 for a network whose widths are not known, which is never divided up front.
    """
    widths = _widths(vae)
    if not widths:
        return 0.0
    numbers = 3 * widths[min(1, len(widths) - 1)] if decodes else 5 * widths[0]
    pixels = size[0] * size[1] * 4 ** (len(widths) - 1)
    return numbers * pixels * next(vae.parameters()).element_size() / 2**30


def decode(
    vae: Any, latents: torch.Tensor, *, wrap: bool = False, memory: float = AUTOENCODER_MEMORY, notes: list[str]
) -> torch.Tensor:
    """Decode (N, C, h, w), as the decoder wants them, to pixels (N, 3, H, W).

    Args:
        vae: a diffusers autoencoder; its own tiling, if enabled, stands for "in tiles", which are then these.
        latents: in the autoencoder's data type.
        wrap: columns wrap around, as those of a closed panorama do.
        memory: GiB that may be taken; more is done in parts.
        notes: what was done in tiles or anew is said here.

    Raises:
        RuntimeError: memory ran out in the smallest tiles, too.
    """
    size = (latents.shape[-2], latents.shape[-1])

    def network(part: torch.Tensor) -> torch.Tensor:
        return vae.decode(part, return_dict=False)[0]

    def run(part: torch.Tensor, tiles: Tiles | None) -> torch.Tensor:
        if tiles is not None:
            with normalised_like(lambda: network(shrunken(part, _area(tiles, size)))):
                return decode_in_tiles(network, part, **tiles._asdict(), wrap=wrap)
        if not wrap:
            return network(part)
        # One tile as large as the picture, with columns of the other side on both sides.
        halo = TILES[0].halo
        longest = max(*part.shape[-2:], TILES[-1].tile)
        return decode_in_tiles(network, part, tile=longest + 2 * halo, halo=halo, wrap=True)

    return _in_memory(vae, "decode", run, latents, size, memory, notes)


def encode(vae: Any, pixels: torch.Tensor, *, memory: float = AUTOENCODER_MEMORY, notes: list[str]) -> torch.Tensor:
    """Encode pixels (N, 3, H, W) in [-1, 1] to the mode of their latents (N, C, h, w), as the decoder wants them.

    Args:
        vae: a diffusers autoencoder.
        pixels: in the autoencoder's data type; sides are multiples of its pixels per cell where tiles are needed.
        memory: as for `decode`.
        notes: as for `decode`.

    Raises:
        RuntimeError: as for `decode`.
    """

    def network(part: torch.Tensor) -> torch.Tensor:
        encoded = vae.encode(part)
        return encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents

    cell = 2 ** max(0, len(_widths(vae)) - 1)
    size = (pixels.shape[-2] // cell, pixels.shape[-1] // cell)

    def run(part: torch.Tensor, tiles: Tiles | None) -> torch.Tensor:
        if tiles is None:
            return network(part)
        with normalised_like(lambda: network(shrunken(part, _area(tiles, size) * cell**2, cell))):
            return encode_in_tiles(network, part, cell, **tiles._asdict())

    return _in_memory(vae, "encode", run, pixels, size, memory, notes)


def _area(tiles: Tiles, size: tuple[int, int]) -> int:
    """Cells that the shrunken whole may have: those of a tile, and never more than half of what was too much."""
    return min(tiles.tile**2, size[0] * size[1] // 2)


def _plans(vae: Any, name: str, count: int, size: tuple[int, int], memory: float) -> list[_Plan]:
    """What to try, in this order: the first that fits and whatever takes less."""
    plans = [_Plan(count, None), *([_Plan(1, None)] if count > 1 else [])]
    plans += [_Plan(1, tiles) for tiles in TILES if tiles.tile < max(size)]

    def fits(plan: _Plan) -> bool:
        if plan.tiles is None:
            asked = getattr(vae, "use_tiling", False) and max(size) > TILES[0].tile
            return not asked and plan.pictures * whole_gib(vae, size, decodes=name == "decode") <= memory
        cells = max(math.prod(min(plan.tiles.tile, side) for side in size), _area(plan.tiles, size))
        gib = whole_gib(vae, (1, cells), decodes=name == "decode")
        # A tile's norm is computed in float32: to three maps in half precision comes one that is twice as wide.
        return gib * (5 / 3 if next(vae.parameters()).element_size() == 2 else 1) <= memory

    first = next((place for place, plan in enumerate(plans) if fits(plan)), len(plans) - 1)
    return plans[first:]


def _in_memory(
    vae: Any,
    name: str,
    run: Callable[[torch.Tensor, Tiles | None], torch.Tensor],
    values: torch.Tensor,
    size: tuple[int, int],
    memory: float,
    notes: list[str],
) -> torch.Tensor:
    """Run in the largest parts that the limit allows, and in smaller ones where memory runs out."""
    ran_out = False
    for plan in _plans(vae, name, len(values), size, memory):
        try:
            with _without_own_tiling(vae):
                parts = [run(part, plan.tiles) for part in values.split(plan.pictures)]
                joined = parts[0] if len(parts) == 1 else torch.cat(parts)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        else:
            _say(notes, _note(name, plan, ran_out, whole_gib(vae, size, decodes=name == "decode"), memory))
            return joined
        # Outside the handler, which would keep the failed attempt's tensors alive through the traceback.
        ran_out = True
        torch.cuda.empty_cache()
    cells = "x".join(str(side) for side in size)
    raise RuntimeError(f"no memory left to {name} latents of {cells} cells, in tiles too. Ask for a smaller picture.")


def _note(name: str, plan: _Plan, ran_out: bool, gib: float, memory: float) -> str | None:
    if plan.tiles is None:
        how = "it was done one picture at a time, which changes nothing else."
        return f"the {name} ran out of memory; {how}" if ran_out else None
    how = f"done in tiles of {plan.tiles.tile} cells, which is close to the whole, not equal"
    if ran_out:
        return f"the {name} ran out of memory; it was {how}."
    return f"the {name} was {how}: as a whole it takes {gib:.1f} GiB (limit: {memory:g}, `autoencoder_memory`)."


@contextmanager
def _without_own_tiling(vae: Any) -> Iterator[None]:
    """Diffusers' tiles have tones of their own; ours do not need them."""
    before = getattr(vae, "use_tiling", None)
    try:
        if before:
            vae.use_tiling = False
        yield
    finally:
        if before:
            vae.use_tiling = before


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out, on an accelerator or in torch's CPU allocator.

    Args:
        error: what was raised.
    """
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _say(notes: list[str], note: str | None) -> None:
    if note is not None and note not in notes:
        logger.warning(note)
        notes.append(note)
