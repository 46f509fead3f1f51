#!/usr/bin/env python
"""Measure the world's reader: how often it reads true renderings right, and how exactly it counts composed pictures.

Writes one JSON line per row to standard output. Some six minutes on one core at the default size:

    scripts/evaluation/check_reader.py --count 2000
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from seecoder.threads import wait_passively

wait_passively()  # before torch is imported

import numpy as np
import torch

from data.world.reader.readings import rates, read
from data.world.render import compose, render
from data.world.scenes import ATTRIBUTES, Scenes, sample_scenes


def rendering_row(side: int, count: int, seed: int) -> dict[str, object]:
    """Accuracy on true renderings of one size."""
    scenes = sample_scenes(count, seed + side)
    start = time.perf_counter()
    readings = read(picture for part in scenes.split(32) for picture in render(part, side))
    seconds = time.perf_counter() - start
    found = rates(readings, scenes)
    return {
        "pictures": "true renderings",
        "side": side,
        "count": count,
        **{name: round(found[name], 4) for name in ("count", *ATTRIBUTES, "all", "horizons", "specks")},
        "pictures_per_second": round(count / seconds),
    }


def scatter(count: int, side: int, gap: float, rng: np.random.Generator) -> Scenes | None:
    """Native-size objects over a larger picture, at least `gap` pixels apart (negative: may touch); None if no room."""
    scenes = sample_scenes(count, int(rng.integers(1 << 30)))
    radius = scenes.radius * 64 / side
    places: list[tuple[float, float, float]] = []
    for r in radius.tolist():
        for _ in range(2000):
            y, x = rng.uniform(1.15 * r, 1 - 1.15 * r, 2)
            if all(np.hypot(y - b, x - a) > 1.13 * (r + q) + gap / side for b, a, q in places):
                places.append((y, x, r))
                break
        else:
            return None
    center = torch.tensor(places).view(-1, 3).float()
    return replace(scenes, radius=radius, center_y=center[:, 0], center_x=center[:, 1])


def composed_row(side: int, most: int, gap: float, count: int, seed: int) -> dict[str, object]:
    """Exactness of the count on pictures with 0 to `most` objects."""
    rng = np.random.default_rng(seed + side)
    errors: list[int] = []
    while len(errors) < count:
        objects = scatter(int(rng.integers(0, most + 1)), side, gap, rng)
        if objects is not None:
            picture = compose(sample_scenes(1, int(rng.integers(1 << 30))), objects, side)
            errors.append(read([picture])[0].num_objects - len(objects))
    return {
        "pictures": "composed, apart" if gap > 0 else "composed, touching allowed",
        "side": side,
        "count": count,
        "objects": f"0-{most}",
        "count_exact": round(float(np.mean(np.array(errors) == 0)), 4),
        "mean_error": round(float(np.mean(errors)), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="pictures a row (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=77, help="seed of the scenes (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for side in (64, 128, 256, 512):
        print(json.dumps(rendering_row(side, options.count, options.seed)), flush=True)
    for side, most in ((128, 4), (192, 9), (256, 9)):
        for gap in (2.0, -8.0):
            row = composed_row(side, most, gap, max(1, options.count // 4), options.seed)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
