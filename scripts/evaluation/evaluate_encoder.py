#!/usr/bin/env python
"""Count what variations by an encoder keep of their input pictures, beside chance and beside the ceiling.

Held-out scenes of the world are drawn, encoded, varied by the world's base, and read again. All rows share scenes and
start noise:

    scripts/evaluation/evaluate_encoder.py --encoder data/world/encoders/plain --out runs/evaluation
"""

import argparse
import sys
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from seecoder.threads import wait_passively

wait_passively()  # before torch is imported

import torch
from tqdm import tqdm

from data.world.conditioner import BASE, load_conditioner, without
from data.world.render import Style, render
from data.world.scenes import ATTRIBUTES, Scenes, sample_scenes
from scripts.evaluation.counts import (
    Sampling,
    denoising_losses,
    encode_latents,
    markdown_table,
    open_world,
    read_rates,
    sample_pictures,
    told,
)
from scripts.results import write_json
from seecoder import SeeCoder
from seecoder.weights.atomic import write_text

LAYOUT = ("corr_center_y", "corr_center_x", "corr_size")
COLUMNS = ("count", *ATTRIBUTES, "all", "outlined", *LAYOUT, "excess loss (x1e-3)")


def evaluate(
    pipeline: Any, scenes: Scenes, truth: torch.Tensor, contexts: dict[str, dict[str, torch.Tensor]], sampling: Sampling
) -> dict[str, dict[str, float]]:
    """Rates of every context, and of the first one against shuffled scenes; losses on true pictures (N, 3, H, W)."""
    losses = denoising_losses(pipeline, encode_latents(pipeline, truth), contexts, seed=sampling.seed)
    baseline = losses["true attribute tokens (ceiling)"]
    rows: dict[str, dict[str, float]] = {}
    rolled, by_chance = scenes[torch.arange(len(scenes)).roll(len(scenes) // 2)], {}
    for name, context in contexts.items():
        with tqdm(total=len(scenes), desc=name, unit="picture", disable=None) as bar:
            pictures = sample_pictures(pipeline, context, sampling, progress=bar.update)
        rows[name] = read_rates(pictures, scenes)
        rows[name]["excess loss (x1e-3)"] = float((losses[name] - baseline).mean()) * 1e3
        by_chance = by_chance or {f"{name}, against other inputs (chance)": read_rates(pictures, rolled)}
    return rows | by_chance


def encoded(encoder: SeeCoder, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
    """What an encoder tells a pipeline of pictures (N, 3, H, W)."""
    outputs = [encoder.encode(part) for part in pictures.split(64)]
    pooled = [output.pooled for output in outputs if output.pooled is not None]
    return told(torch.cat([output.context for output in outputs]), torch.cat(pooled) if pooled else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True, type=Path, nargs="+", help="folders saved by `seecoder export`")
    parser.add_argument("--base", type=Path, default=BASE, help="the world's base (default: the committed one)")
    parser.add_argument("--out", type=Path, required=True, help="folder for table.md, table.json")
    parser.add_argument("--count", type=int, default=256, help="held-out scenes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=9_000_000, help="seed of scenes and noise (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=4.0, help="guidance scale (default: %(default)s)")
    parser.add_argument(
        "--style",
        choices=get_args(Style),
        default="shaded",
        help="what the base draws; encoders see shaded pictures (default: %(default)s)",
    )
    options = parser.parse_args()
    scenes = sample_scenes(options.count, options.seed)
    encoders = {folder.name: SeeCoder.from_pretrained(folder).float().eval() for folder in options.encoder}
    pipeline = open_world(options.base, next(iter(encoders.values())))
    inputs = render(scenes, pipeline.unet.config.sample_size * pipeline.vae_scale_factor)
    with torch.no_grad():
        contexts = {f"variation by {name}": encoded(encoder, inputs) for name, encoder in encoders.items()}
        conditioner = load_conditioner(options.base)
        tokens, without_layout = conditioner(scenes), conditioner(scenes, without(["layout"], len(scenes)))
        contexts["true attribute tokens (ceiling)"] = told(tokens, conditioner.pool(tokens))
        contexts["the same without the layout token"] = told(without_layout, conditioner.pool(without_layout))
    sampling = Sampling(steps=options.steps, guidance_scale=options.guidance, seed=options.seed)
    truth = inputs if options.style == "shaded" else render(scenes, inputs.shape[-1], style=options.style)
    rows = evaluate(pipeline, scenes, truth, contexts, sampling)
    options.out.mkdir(parents=True, exist_ok=True)
    table = markdown_table(rows, COLUMNS)
    write_text(options.out / "table.md", table + "\n")
    settings = {"count": options.count, "seed": options.seed, "steps": options.steps, "guidance": options.guidance}
    write_json(options.out / "table.json", {"settings": settings, "rows": rows})
    print(table)


if __name__ == "__main__":
    main()
