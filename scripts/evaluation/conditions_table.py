#!/usr/bin/env python
"""Count what a base makes of what it is told: classes, layouts, words, holes, small pictures, maps.

    scripts/evaluation/conditions_table.py runs/world_inpainting --side 128 --out runs/inpainting_128.json

Takes a run of `WorldDiffusionStage` on `WorldConditions`, and scenes that are new to it. Beside what the reader counts:
"IoU" of the largest object's box with the true one; "map", the fraction of pixels that are sky, ground or object where
they should be; "PSNR" and "spectrum" (distance in dB) to the true rendering; "seam", the mean step between neighbouring
pixels across borders of the trained area, relative to steps two pixels beside. Where there is a hole, another object is
asked for than the one it hid, its place is not told, PSNR is of the rest, and the seam is around the hole.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from seecoder.threads import wait_passively

wait_passively()  # before torch is imported

import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.ops import box_iou

from data.world.conditioner import TOKENS
from data.world.reader.readings import rates, read
from data.world.reader.segmentation import saturated_mask
from data.world.render import segment
from data.world.scenes import sample_scenes
from scripts.results import markdown, versions, write_json
from seecoder.base_model.latents import decode_pixels, encode_posterior
from seecoder.evaluation.detail import spectrum_distance
from train.cli import build_parser
from train.sources.world_conditions import bounding_boxes
from train.sources.world_data import WHOLE, draw_bytes, to_model_range
from train.stages.encoder_weights import load_widened
from train.stages.noise import held_out_keys, normal


def open_run(folder: Path) -> tuple[Any, Any]:
    """Stage, with averaged weights, and data source by the settings and the newest checkpoint in a run's folder."""
    parser = build_parser()
    small = ("--data.init_args.pool_size", "1", "--data.init_args.held_out", "1", "--stage.init_args.init_from", "null")
    ready = parser.instantiate(parser.parse_args(["fit", "--config", str(folder / "config.yaml"), *small])).fit
    load_widened(ready.stage, folder)
    ready.data.setup("fit")
    return ready.stage.eval(), ready.data


@torch.no_grad()
def sample(stage: Any, batch: dict[str, Any], steps: int, guidance: float, seed: int) -> Tensor:
    """Latents for each sample of a batch by DDIM, from its own noise, guided by what is told as tokens."""
    keep = torch.ones(len(batch["keys"]), stage.num_told, dtype=torch.bool)
    keep[:, TOKENS.index("layout")] = "hole" not in batch
    told, nothing = stage.predictor(batch, keep), stage.predictor(batch, torch.zeros_like(keep))
    scheduler: Any = DDIMScheduler.from_config(stage.scheduler_config)
    scheduler.set_timesteps(steps)
    latents = normal(seed, "sample", batch["keys"], batch["mean"].shape[1:])
    for time in scheduler.timesteps:
        output = told(latents, time)
        output = output if guidance == 1 else torch.lerp(nothing(latents, time), output, guidance)
        latents = scheduler.step(output, time, latents).prev_sample
    return latents


def table(stage: Any, data: Any, side: int, count: int, **sampling: Any) -> list[dict[str, Any]]:
    """Rows of samples, of what the autoencoder makes of the truth, and of small pictures enlarged by interpolation."""
    scenes, keys, at = sample_scenes(count, sampling["seed"]), held_out_keys(slice(0, count)), torch.arange(side) // 64
    pixels = draw_bytes(scenes, side)
    batch = data.told(keys, pixels, scenes, WHOLE.expand(count, 3)) | {"keys": keys, "pixels": pixels}
    batch |= {
        "truth": pixels / 255,
        "mean": encode_posterior(data.vae, to_model_range(pixels))[0],
        "parts": segment(scenes, side),
    }
    asked, hole, borders = scenes, torch.zeros(1, 1, 1, 1), at[:, None] * side + at
    if "hole" in batch:
        hides = (batch["parts"][:, 2:] <= batch["hole"]).flatten(1).all(1)
        batch, scenes = {name: values[hides] for name, values in batch.items()}, scenes[hides]
        asked = replace(scenes, **{name: getattr(scenes, name).roll(1) for name in ("shape", "hue", "texture")})
        hole = borders = batch["hole"]
    latents = sample(stage, batch | {"scenes": vars(asked)}, **sampling)
    pictures = {"sampled": (decode_pixels(data.vae, latents), asked)}
    pictures["autoencoder"] = (decode_pixels(data.vae, batch["mean"]), scenes)
    if "low_resolution" in batch:
        small = (batch["low_resolution"] + 1) / 2
        pictures["bicubic"] = (interpolate(small, scale_factor=4, mode="bicubic").clamp(0, 1), scenes)
    rows, where = [], batch["parts"].argmax(1)
    for name, (made, told) in pictures.items():
        readings = read(made)
        boxes = torch.tensor([one.main.box if one.main else (0.0,) * 4 for one in readings])
        error = ((made - batch["truth"]).square() * (1 - hole)).mean((1, 2, 3)) / (1 - hole).mean((1, 2, 3))
        figures = {
            "IoU": float(box_iou(boxes, bounding_boxes(batch["parts"][:, 2] > 0.5)).diagonal().mean()),
            "map": float((kinds(made) == where).float().mean()),
            "PSNR": float(-10 * error.log10().mean()),
            "spectrum": spectrum_distance(made, batch["truth"]),
            "seam": seam(made, borders),
        }
        rows.append({"": name, "pictures": len(told), **rates(readings, told), **figures})
    return rows


def kinds(pixels: Tensor) -> Tensor:
    """Tell sky 0, ground 1 and object 2 apart, (N, 3, H, W) -> (N, H, W): the ground is darker than the middle."""
    is_object = torch.stack([torch.from_numpy(saturated_mask(image.numpy())) for image in pixels])
    free = pixels.amax(1).masked_fill(is_object, torch.nan)
    middle = torch.nanquantile(free.flatten(1), torch.tensor([0.08, 0.92]), dim=1).mean(0)[:, None, None]
    return torch.where(is_object, 2, (free < middle).long())


def seam(pixels: Tensor, parts: Tensor) -> float:
    """Mean step across borders, where `parts` (..., H, W) changes, relative to steps two pixels beside them."""
    across, beside = [], []
    for dim in (-2, -1):
        step = pixels.diff(dim=dim).abs().mean(1, keepdim=True)
        border = (parts.diff(dim=dim) != 0).expand_as(step)
        across.append(step[border])
        beside.append(step[(border.roll(2, dim) | border.roll(-2, dim)) & ~border])
    return float(torch.cat(across).mean() / torch.cat(beside).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--side", type=int, default=64, help="of pictures, in pixels (default: %(default)s)")
    parser.add_argument("--count", type=int, default=128, help="pictures (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=25, help="DDIM steps (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=5_000_000, help="seed of scenes and noise (default: %(default)s)")
    settings = vars(parser.parse_args())
    out, run = settings.pop("out"), settings.pop("run")
    if not (run / "config.yaml").is_file():
        parser.error(f"`run`={run} has no config.yaml; give the folder of a run of `python -m train fit`.")
    rows = table(*open_run(run), **settings)
    write_json(out, {"settings": settings, "versions": versions("torch", "diffusers"), "rows": rows})
    print(markdown(rows))


if __name__ == "__main__":
    main()
