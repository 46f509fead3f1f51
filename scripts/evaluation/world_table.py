#!/usr/bin/env python
"""Measure the world's base: what the reader counts on reconstructions and on samples.

    scripts/evaluation/world_table.py --out data/world/base

Writes measured.json (numbers, settings, versions) into --out and prints the table. Some ten minutes on two cores.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from seecoder.threads import wait_passively

wait_passively()  # before torch is imported

import torch

from data.world.conditioner import BASE, load_conditioner, without
from data.world.render import render
from data.world.scenes import ATTRIBUTES, Scenes, sample_scenes
from scripts.evaluation.counts import Sampling, markdown_table, open_world, read_rates, sample_pictures, told
from scripts.results import versions, write_json
from seecoder.base_model.latents import decode_pixels, encode_posterior

COLUMNS = ("count", *ATTRIBUTES, "all", "objects", "specks", "horizons", "corr_center_y", "corr_center_x", "corr_size")


@torch.no_grad()
def reconstruction(pipeline: Any, scenes: Scenes, side: int) -> dict[str, float]:
    """Rates and PSNR (decibels, mean over pictures) of pictures that went through the autoencoder."""
    vae, squared_errors, outputs = pipeline.vae, [], []
    for part in scenes.split(32):
        pixels = render(part, side)
        output = decode_pixels(vae, encode_posterior(vae, 2 * pixels - 1)[0])
        squared_errors.append((output - pixels).square().flatten(1).mean(1))
        outputs.append(output)
    psnr = -10 * torch.cat(squared_errors).log10().mean()
    return read_rates(torch.cat(outputs), scenes) | {"psnr": float(psnr)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=BASE, help="the base to measure (default: the committed one)")
    parser.add_argument("--out", type=Path, required=True, help="folder for measured.json")
    parser.add_argument("--count", type=int, default=512, help="pictures a row (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=5_000_000, help="seed of scenes and noise (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=4.0, help="guidance scale (default: %(default)s)")
    parser.add_argument("--native-only", action="store_true", help="leave out the row of twice the size, the slowest")
    options = parser.parse_args()
    pipeline = open_world(options.base)
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    scenes = sample_scenes(options.count, options.seed)
    with torch.no_grad():
        conditioner = load_conditioner(options.base)
        contexts = conditioner(scenes), conditioner(scenes, without(["layout"], len(scenes)))
        tokens, unplaced = (told(context, conditioner.pool(context)) for context in contexts)
    sampling = Sampling(options.steps, options.guidance, options.seed)
    double = Sampling(options.steps, options.guidance, options.seed, height=2 * side, width=2 * side)
    rows = {
        f"reconstruction, {side}": reconstruction(pipeline, scenes, side),
        f"sampled, {side}": read_rates(sample_pictures(pipeline, tokens, sampling), scenes),
        f"sampled without the layout, {side}": read_rates(sample_pictures(pipeline, unplaced, sampling), scenes),
    }
    if not options.native_only:
        rows[f"plain sampling, {2 * side}"] = read_rates(sample_pictures(pipeline, tokens, double), scenes)
    settings = {name: getattr(options, name) for name in ("count", "seed", "steps", "guidance")}
    content = {"settings": settings, "versions": versions("torch", "diffusers"), "rows": rows}
    write_json(options.out / "measured.json", content)
    print(markdown_table(rows, COLUMNS))
    print(f"\nreconstruction PSNR {rows[f'reconstruction, {side}']['psnr']:.2f} dB")


if __name__ == "__main__":
    main()
