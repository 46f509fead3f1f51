#!/usr/bin/env python
"""Show what an encoder takes for alike: the nearest contexts of photographs' crops among scenes and other crops.

    scripts/evaluation/context_neighbours.py data/world/encoders/plain --photos PICTURES --out runs/neighbours

Writes neighbours.png, a row for each crop, and prints how often the nearest one is a crop of the same photograph.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from seecoder.threads import wait_passively

wait_passively()  # before torch is imported

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from data.world.render import render
from data.world.scenes import sample_scenes
from seecoder import SeeCoder
from seecoder.images.gate import is_image_file, load_image
from seecoder.images.saving import save_image, to_pil
from seecoder.images.sheet import contact_sheet

CROPS = 6  # of each photograph
SHOWN = 5  # neighbours of each crop


def random_crops(photo: Tensor, count: int, side: int, generator: torch.Generator) -> Tensor:
    """Squares of half to all of the short side, anywhere, scaled; (3, H, W) -> (count, 3, side, side)."""
    height, width = photo.shape[-2:]
    crops = []
    for draws in torch.rand(count, 3, generator=generator).tolist():
        length = round(min(height, width) * (0.5 + draws[0] / 2))
        top, left = round(draws[1] * (height - length)), round(draws[2] * (width - length))
        square = photo[None, :, top : top + length, left : left + length]
        crops.append(interpolate(square, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1))
    return torch.cat(crops)


@torch.no_grad()
def similarities(encoder: Any, pictures: Tensor) -> Tensor:
    """Cosines between contexts less their mean, (N, 3, S, S) -> (N, N); a picture has -1 with itself."""
    contexts = torch.cat([encoder(part).flatten(1) for part in pictures.split(64)])
    directions = normalize(contexts - contexts.mean(0), dim=1)
    return (directions @ directions.T).fill_diagonal_(-1.0)


def same_photo(cosines: Tensor, photos: int) -> float:
    """Share of crops, the first rows of `cosines`, whose nearest picture is another crop of their photograph."""
    owners = torch.arange(photos * CROPS) // CROPS
    nearest = cosines[: len(owners)].argmax(1)
    return float((nearest // CROPS == owners).float().mean())  # scenes come after all crops: their owner is none


def photo_paths(folder: Path) -> Sequence[Path]:
    """Pictures in a folder, by name; a ValueError if there are none."""
    found = sorted(path for path in folder.iterdir() if is_image_file(path))
    if not found:
        raise ValueError(f"`--photos`={folder} has no pictures; give a folder of photographs.")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path, help="folder saved by `seecoder export`")
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--scenes", type=int, default=500, help="scenes beside them (default: %(default)s)")
    parser.add_argument("--side", type=int, default=64, help="height and width of all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=8_000_000, help="of scenes and crops (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for neighbours.png")
    options = parser.parse_args()
    try:
        paths = photo_paths(options.photos)
        encoder = SeeCoder.from_pretrained(options.encoder).float().eval()
    except (OSError, ValueError) as error:
        parser.error(str(error))
    generator = torch.Generator().manual_seed(options.seed)
    crops = [random_crops(load_image(path), CROPS, options.side, generator) for path in paths]
    scenes = [render(part, options.side) for part in sample_scenes(options.scenes, options.seed).split(64)]
    pictures = torch.cat(crops + scenes)
    cosines = similarities(encoder, pictures)
    nearest = cosines.topk(SHOWN).indices.tolist()
    rows, labels = [], []
    for index in range(len(paths) * CROPS):
        rows.append([to_pil(pictures[other]) for other in (index, *nearest[index])])
        labels.append(
            [paths[index // CROPS].stem, *(f"{float(cosines[index, other]):.2f}" for other in nearest[index])]
        )
    options.out.mkdir(parents=True, exist_ok=True)
    save_image(contact_sheet(rows, labels, cell=96), options.out / "neighbours.png")
    chance = (CROPS - 1) / (len(pictures) - 1)
    share = same_photo(cosines, len(paths))
    print(f"nearest is a crop of the same photograph: {share:.1%} of {len(paths) * CROPS} (chance {chance:.1%})")
    found = [other >= len(paths) * CROPS for others in nearest[: len(paths) * CROPS] for other in others]
    chance = options.scenes / len(pictures)
    print(f"of the {SHOWN} nearest are scenes: {sum(found) / len(found):.1%} (chance {chance:.1%})")


if __name__ == "__main__":
    main()
