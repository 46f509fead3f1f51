#!/usr/bin/env python
"""What a training step costs on the CPU, and what each lever gives; `gpu.py` measures a GPU.

    scripts/benchmarks/training.py --out scripts/benchmarks/training.json

The world is trained by the naive loop, with each lever alone, and with all together. Turns of a few steps are
interleaved, so that whatever else the machine does falls on all alike; a ratio is that of two turns of one repetition.
It ends with a verdict on the goal, and with exit code 1 if that is not met.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from seecoder.threads import wait_passively

wait_passively()  # before torch is imported

import torch

from scripts.benchmarks.goals import exit_code, training_verdicts
from scripts.benchmarks.training_inputs import world_workload
from scripts.benchmarks.training_levers import ALL, NAIVE, Levers, Loop, Workload, measured_peak
from scripts.results import markdown, versions, write_json


def measure(work: Workload, variants: Mapping[str, Levers], steps: int, repetitions: int) -> list[dict[str, Any]]:
    """Train with all variants by turns; every other repetition goes backwards.

    Args:
        work: What is trained.
        variants: Loops by name; the naive one among them.
        steps: Of a turn. The first step of a loop is not measured: compiling, first touch of memory, readers.
        repetitions: Turns of each loop.

    Returns:
        A row for each variant; ratios are to the naive loop's turn of the same repetition.
    """
    loops = {name: Loop(work, levers) for name, levers in variants.items()}
    for name, loop in loops.items():
        loop.turn(1)
        print(f"  {name}: ready", file=sys.stderr, flush=True)
    memory = {name: loop.memory() for name, loop in loops.items()}
    speeds: dict[str, list[float]] = {name: [] for name in loops}
    peak = measured_peak(work.device)
    for repetition in range(repetitions):
        for name in list(loops)[:: -1 if repetition % 2 else 1]:
            speeds[name].append(loops[name].turn(steps))
    rows = []
    for name, loop in loops.items():
        loop.close()
        ratios = [one / naive for one, naive in zip(speeds[name], speeds[NAIVE], strict=True)]
        speed = statistics.median(speeds[name])
        rows.append(
            {
                "loop": name,
                "batch": loop.batch_size,
                "images_per_second": speed,
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "mfu": speed * work.flops(variants[name]) / peak,
                "mib_per_image": memory[name] / 2**20,
                "first_loss": loop.first_loss,
            }
        )
    return rows


def main() -> int:
    """Measure; 1 if a goal is not met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for all numbers")
    parser.add_argument("--base", type=Path, help="the world's base (data/world/base)")
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn (%(default)s)")
    parser.add_argument("--repetitions", type=int, default=5, help="turns of each loop (%(default)s)")
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("steps", "repetitions")}
    result: dict[str, Any] = {"versions": versions("torch", "diffusers", "timm"), "settings": settings}
    result["threads"] = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as temporary:
        work = world_workload(Path(temporary), options.base)
        rows = measure(work, work.variants(), options.steps, options.repetitions)
    print(markdown(rows))
    fast = next(row for row in rows if row["loop"] == ALL)
    verdicts = list(training_verdicts({"workload": work.name, "device": work.device}, fast))
    write_json(options.out, result | {"world": rows, "verdicts": [str(verdict) for verdict in verdicts]})
    print("", *verdicts, sep="\n")
    return exit_code(verdicts)


if __name__ == "__main__":
    sys.exit(main())
