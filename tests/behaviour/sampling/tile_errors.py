"""How far pictures decoded in tiles are from the whole, in the world.

python -m tests.behaviour.sampling.tile_errors     # prints the rows that the README of the pipelines tells of
"""

from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from data.world.conditioner import BASE
from data.world.render import render
from data.world.scenes import sample_scenes
from seecoder.base_model.loading import load_part
from seecoder.pipelines import bounded_memory
from seecoder.sampling import normalised_like, shrunken
from tests.fixtures.tiles import redundancy

SCENES, SEED, SIDE = 2, 7_000_000, 512  # pictures, and pixels: 128 cells
SHRUNK = (2, 4, 8)
LEVELS = 127.5  # of 255, for pixels in [-1, 1]


@torch.no_grad()
def tile_errors() -> list[dict[str, Any]]:
    """Levels of 255 between tiles and the whole: with the norms of the whole, and with every tile's own."""
    vae = load_part(BASE, "vae")
    pixels = render(sample_scenes(SCENES, seed=SEED), SIDE) * 2.0 - 1.0
    latents = torch.cat([vae.encode(picture).latent_dist.mode() for picture in pixels.split(1)])
    whole = bounded_memory.decode_in_parts(vae, latents, memory=bounded_memory.whole_gib(vae, (128, 128)), notes=[])
    rows = []
    for tiles in bounded_memory.TILES[1:]:
        memory = bounded_memory.whole_gib(vae, (tiles.tile, tiles.tile))
        for norms in ("of the whole", "of each tile"):
            # What users never get, for comparison: tiles without what they share.
            own = patch.object(bounded_memory, "normalised_like", lambda *_: nullcontext())
            with own if norms == "of each tile" else nullcontext():
                error = (bounded_memory.decode_in_parts(vae, latents, memory=memory, notes=[]) - whole).abs() * LEVELS
            row = {"tile": tiles.tile, "norms": norms, "mean_levels": float(error.mean())}
            rows.append(row | {"largest_levels": float(error.max()), "work": _work(tiles, norms == "of the whole")})
    return rows + [_shrunk(vae, latents, whole, times) for times in SHRUNK]


def _shrunk(vae: Any, latents: torch.Tensor, whole: torch.Tensor, times: int) -> dict[str, Any]:
    """What the statistics alone cost: the whole, normalised like itself shrunk so many times."""
    errors = []
    for one, expected in zip(latents.split(1), whole.split(1), strict=True):
        small = shrunken(one, one.shape[-1] * one.shape[-2] // times**2)
        with normalised_like(partial(vae.decode, small)):
            errors.append((vae.decode(one).sample - expected).abs() * LEVELS)
    error = torch.cat(errors)
    row = {"tile": "none", "norms": f"of the whole, shrunk {times} times", "mean_levels": float(error.mean())}
    return row | {"largest_levels": float(error.max()), "work": 1.0 + 1.0 / times**2}


def _work(tiles: bounded_memory.Tiles, shares: bool) -> float:
    """Cells decoded for each cell of the picture; the shrunk whole is one tile more."""
    cells = 128 * 128
    return redundancy((128, 128), **tiles._asdict()) + (min(tiles.tile**2, cells // 2) / cells if shares else 0.0)


if __name__ == "__main__":
    print(*tile_errors(), sep="\n")
