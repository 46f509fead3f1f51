"""The autoencoder in bounded memory: whole, one picture at a time, or in tiles that agree.

How a picture goes through depends on its size, the data type and the limit alone, never on how much memory happens to
be free. Only where memory runs out all the same is it tried again in smaller parts, and a note says so.
"""

import logging
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor

from seecoder.base_model.facts import pixels_per_cell
from seecoder.pipelines.networks import is_out_of_memory
from seecoder.replacing import replaced
from seecoder.sampling.tiles.tile_statistics import normalised_like, shrunken
from seecoder.sampling.tiles.tiling import in_tiles

logger = logging.getLogger(__name__)

AUTOENCODER_MEMORY = 6.0  # GiB: 2048 x 2048 pixels of Stable Diffusion's in half precision, 1448 x 1448 in float32

Way = Literal["decode", "encode"]


class Tiles(NamedTuple):
    """Sizes in cells: margins cost at most 1.8 times the work (more only for closed loops hardly longer than a tile).

    The norms of the whole come on top: one tile more, and never more than half a picture.
    """

    tile: int
    halo: int
    feather: int

    def shrunken_area(self, size: tuple[int, int]) -> int:
        """Cells that the shrunken whole may have: those of a tile, and never more than half of what was too much."""
        return min(self.tile**2, size[0] * size[1] // 2)


TILES = (Tiles(128, 12, 4), Tiles(64, 6, 2), Tiles(48, 4, 2))


class _Plan(NamedTuple):
    """How many pictures at once, and in which tiles."""

    pictures: int
    tiles: Tiles | None


def whole_gib(vae: Any, size: tuple[int, int], way: Way = "decode") -> float:
    """Give the GiB that one picture takes as a whole, besides the weights and the workspace of convolutions.

    The most is alive in the residual layers at full resolution: on the way up three maps as wide as the second level
    (what comes in, its norm, the activation), on the way down five as wide as the first. Counted with torch's memory
    tracker on Stable Diffusion's autoencoder: 768 and 643 numbers a pixel.

    Args:
        vae: A diffusers autoencoder.
        size: (height, width) in cells.
        way: "decode" or "encode".
    """
    widths = vae.config["block_out_channels"]  # from the outermost level inwards
    numbers = 3 * widths[min(1, len(widths) - 1)] if way == "decode" else 5 * widths[0]
    pixels = size[0] * size[1] * pixels_per_cell(vae) ** 2
    return numbers * pixels * next(vae.parameters()).element_size() / 2**30


def decode_in_parts(
    vae: Any, latents: Tensor, *, wrap: bool = False, memory: float = AUTOENCODER_MEMORY, notes: list[str]
) -> Tensor:
    """Decode latents as the decoder reads them.

    Args:
        vae: A diffusers autoencoder; its own tiling, if enabled, stands for "in tiles", which are then these.
        latents: (N, C, h, w), unscaled, in the autoencoder's data type.
        wrap: Columns wrap around, as those of a closed panorama do.
        memory: GiB that may be taken; what takes more is done in parts.
        notes: Where a note is added about what was done in tiles or once more.

    Returns:
        Pixels (N, 3, H, W), about [-1, 1].

    Raises:
        RuntimeError: Memory ran out in the smallest tiles, too.
    """
    size = (latents.shape[-2], latents.shape[-1])

    def network(part: Tensor) -> Tensor:
        return vae.decode(part, return_dict=False)[0]

    def run(part: Tensor, tiles: Tiles | None) -> Tensor:
        if tiles is not None:
            with normalised_like(lambda: network(shrunken(part, tiles.shrunken_area(size)))):
                return in_tiles(network, part, **tiles._asdict(), wrap=wrap)
        if not wrap:
            return network(part)
        # One tile as large as the picture, with columns of the other side on both sides.
        halo = TILES[0].halo
        longest = max(*part.shape[-2:], TILES[-1].tile)
        return in_tiles(network, part, tile=longest + 2 * halo, halo=halo, wrap=True)

    return _in_parts(vae, "decode", run, latents, size, memory, notes)


def encode_in_parts(vae: Any, pixels: Tensor, *, memory: float = AUTOENCODER_MEMORY, notes: list[str]) -> Tensor:
    """Encode pixels to the mode of their latents, as the encoder gives them.

    Args:
        vae: A diffusers autoencoder.
        pixels: (N, 3, H, W) in [-1, 1], in the autoencoder's data type; where tiles are needed, sides are multiples of
            its pixels per cell.
        memory: GiB that may be taken; what takes more is done in parts.
        notes: Where a note is added about what was done in tiles or once more.

    Returns:
        (N, C, h, w), unscaled.

    Raises:
        RuntimeError: Memory ran out in the smallest tiles, too.
    """
    cell = pixels_per_cell(vae)
    size = (pixels.shape[-2] // cell, pixels.shape[-1] // cell)

    def network(part: Tensor) -> Tensor:
        encoded = vae.encode(part)
        return encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents

    def run(part: Tensor, tiles: Tiles | None) -> Tensor:
        if tiles is None:
            return network(part)
        with normalised_like(lambda: network(shrunken(part, tiles.shrunken_area(size) * cell**2, cell))):
            return in_tiles(network, part, finer=cell, **tiles._asdict())

    return _in_parts(vae, "encode", run, pixels, size, memory, notes)


def _in_parts(
    vae: Any,
    way: Way,
    run: Callable[[Tensor, Tiles | None], Tensor],
    values: Tensor,
    size: tuple[int, int],
    memory: float,
    notes: list[str],
) -> Tensor:
    """Run in the largest parts that the limit allows, and in smaller ones where memory runs out."""
    for place, plan in enumerate(_plans(vae, way, len(values), size, memory)):
        try:
            with replaced(vae, use_tiling=False):  # diffusers' tiles have tones of their own
                parts = [run(part, plan.tiles) for part in values.split(plan.pictures)]
                joined = parts[0] if len(parts) == 1 else torch.cat(parts)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            note = _note(way, plan, place > 0, whole_gib(vae, size, way), memory)
            if note is not None and note not in notes:
                logger.warning(note)
                notes.append(note)
            return joined
        # Outside the handler, which would keep the failed attempt's tensors alive through the traceback.
        clear_device_cache()
    raise RuntimeError(
        f"no memory left to {way} latents of {size[0]}x{size[1]} cells, in tiles too. Ask for a smaller picture."
    )


def _plans(vae: Any, way: Way, count: int, size: tuple[int, int], memory: float) -> list[_Plan]:
    """What to try, in this order: the first that fits and whatever takes less."""
    plans = [_Plan(rows, None) for rows in dict.fromkeys((count, 1))]
    plans += [_Plan(1, tiles) for tiles in TILES if tiles.tile < max(size)]

    def fits(plan: _Plan) -> bool:
        if plan.tiles is None:
            wants_tiles = getattr(vae, "use_tiling", False) and max(size) > TILES[0].tile
            return not wants_tiles and plan.pictures * whole_gib(vae, size, way) <= memory
        cells = max(math.prod(min(plan.tiles.tile, side) for side in size), plan.tiles.shrunken_area(size))
        # A tile's norm is computed in float32: to three maps in half precision comes one that is twice as wide.
        wider = 5 / 3 if next(vae.parameters()).element_size() == 2 else 1
        return whole_gib(vae, (1, cells), way) * wider <= memory

    first = next((place for place, plan in enumerate(plans) if fits(plan)), len(plans) - 1)
    return plans[first:]


def _note(way: Way, plan: _Plan, ran_out: bool, gib: float, memory: float) -> str | None:
    """What the user is told about a plan that worked; None where nothing changed."""
    if plan.tiles is None:
        how = "it was done one picture at a time, which changes nothing else."
        return f"the {way} ran out of memory; {how}" if ran_out else None
    how = f"done in tiles of {plan.tiles.tile} cells, which is close to the whole, not equal"
    if ran_out:
        return f"the {way} ran out of memory; it was {how}."
    return f"the {way} was {how}: as a whole it takes {gib:.1f} GiB (limit: {memory:g}, `autoencoder_memory`)."
