"""What the presets are chosen by: methods above the native size under the contexts of pictures, counted in the world.

python -m tests.behaviour.sampling.preset_rows --factors 2x2 4x4    # prints the table of the pipelines' README
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from data.world.conditioner import BASE, ENCODERS
from data.world.render import render
from data.world.scenes import ATTRIBUTES, sample_scenes
from scripts.evaluation.counts import Sampling, markdown_table, read_rates, sample_pictures
from seecoder import SeeCoder, SeeCoderPipeline
from seecoder.presets import PRESETS
from seecoder.sampling import DemoFusion, RectifiedHR, ScaleCrafter

STEPS, GUIDANCE, SEED, NATIVE = 25, 4.0, 6_000_000, 64
COLUMNS = ("count", *ATTRIBUTES, "all", "objects")
LATE = (0.85, 0.95)
ROWS: dict[str, Any] = {
    "plain": None,
    "ScaleCrafter": [ScaleCrafter()],
    "RectifiedHR": [RectifiedHR()],
    "ScaleCrafter + RectifiedHR, `switch_at=(0.85, 0.95)`": [ScaleCrafter(), RectifiedHR(switch_at=LATE)],
    "ScaleCrafter + RectifiedHR": [ScaleCrafter(), RectifiedHR()],
    "ScaleCrafter + DemoFusion, `use_windows=False`": [ScaleCrafter(), DemoFusion(use_windows=False)],
    **{f"preset {name}": name for name in PRESETS},
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--factors", nargs="+", default=["2x2"], help="rows x columns in native sides")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--encoder", default="plain")
    parser.add_argument("--rows", nargs="*", default=list(ROWS))
    options = parser.parse_args(arguments)
    encoder = SeeCoder.from_pretrained(ENCODERS / options.encoder).float().eval()
    pipe = SeeCoderPipeline.from_base(BASE, encoder=encoder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    scenes = sample_scenes(options.count, SEED)
    context = pipe.encode_context(list(render(scenes, NATIVE)))
    for factor in options.factors:
        height, width = (NATIVE * int(sides) for sides in factor.split("x"))
        batch = max(1, 64 * NATIVE**2 // (height * width))
        sampling = Sampling(STEPS, GUIDANCE, SEED, batch, height, width)
        rows = {}
        for name in options.rows:
            rows[name] = read_rates(sample_pictures(pipe, context, sampling, method=ROWS[name]), scenes)
            print(markdown_table({name: rows[name]}, COLUMNS).splitlines()[-1], flush=True)
        print(f"\n{height} x {width}\n\n{markdown_table(rows, COLUMNS)}\n", flush=True)


if __name__ == "__main__":
    main()
