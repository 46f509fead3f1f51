#!/usr/bin/env python
"""Ask every part of an encoder where the object is: ridge regression from what it holds to place and size.

    scripts/evaluation/probe_place.py data/world/encoders/position_aware --count 3000

Prints R² on a quarter of the scenes that the regression did not see: 1 says everything, 0 nothing. Maps are pooled to
4 x 4 cells first. Some three minutes on one core.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from seecoder.threads import wait_passively

wait_passively()  # before torch is imported

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from data.world.render import render
from data.world.scenes import LAYOUT, sample_scenes
from scripts.results import markdown
from seecoder import SeeCoder

CELLS = 4  # of a side of a pooled map
WIDTH = 1000  # wider features are projected to so many at random, so that there are more scenes than features
PENALTIES = (1.0, 10.0, 100.0, 1000.0, 10000.0)


@torch.no_grad()
def features(encoder: Any, pixels: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What the parts of an encoder hold of pictures, by name; each (N, D)."""
    maps = encoder.compute_maps(pixels)
    decoded: list[Tensor] = []
    read: list[tuple[str, Tensor]] = []
    hooks = [encoder.decoder.register_forward_hook(lambda *call: decoded.extend(call[-1]))]
    for number, block in enumerate(encoder.query_transformer.blocks):
        for name, part in ((f"block {number}, what is read", block.cross_attention), (f"block {number}", block)):
            hooks.append(part.register_forward_hook(lambda *call, name=name: read.append((name, call[-1].flatten(1)))))
    try:
        context = encoder.encode_maps(maps).context
    finally:
        for hook in hooks:
            hook.remove()
    for title, levels in (("backbone", maps), ("decoder", decoded)):
        for number, level in enumerate(levels):
            yield f"{title}, level {number}", adaptive_avg_pool2d(level, CELLS).flatten(1)
    yield from read
    yield "context", context.flatten(1)


def explained(inputs: Tensor, targets: Tensor) -> Tensor:
    """R² of ridge regression on the last quarter of the rows, by the best of several penalties for each target.

    Args:
        inputs: (N, D) features.
        targets: (N, K).

    Returns:
        (K,) at most 1.
    """
    inputs, targets = inputs.double(), targets.double()
    seen = len(inputs) * 3 // 4
    if inputs.shape[1] > WIDTH:
        generator = torch.Generator().manual_seed(0)
        inputs = inputs @ torch.randn(inputs.shape[1], WIDTH, generator=generator).double()
    std = inputs[:seen].std(0)
    inputs = ((inputs - inputs[:seen].mean(0)) / std)[:, std > 1e-6 * std.max()]  # dead channels say nothing
    offset = targets[:seen].mean(0)
    gram, product = inputs[:seen].T @ inputs[:seen], inputs[:seen].T @ (targets[:seen] - offset)
    results = []
    for penalty in PENALTIES:
        weights = torch.linalg.solve(gram + penalty * torch.eye(len(gram)).double(), product)
        errors = inputs[seen:] @ weights + offset - targets[seen:]
        results.append(1 - errors.square().mean(0) / targets[seen:].var(0, correction=0))
    return torch.stack(results).amax(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path, help="folder saved by `seecoder export`")
    parser.add_argument("--count", type=int, default=3000, help="scenes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=8_000_000, help="seed of the scenes (default: %(default)s)")
    options = parser.parse_args()
    encoder = SeeCoder.from_pretrained(options.encoder).float().eval()
    scenes = sample_scenes(options.count, options.seed)
    found: dict[str, list[Tensor]] = {}
    for part in scenes.split(250):
        for name, values in features(encoder, render(part, 64)):
            found.setdefault(name, []).append(values)
    targets = torch.stack([getattr(scenes, name) for name in LAYOUT], dim=1)
    rows = []
    for name, parts in found.items():
        values = [f"{value:.3f}" for value in explained(torch.cat(parts), targets)]
        rows.append({"": name} | dict(zip(LAYOUT, values, strict=True)))
    print(markdown(rows))


if __name__ == "__main__":
    main()
