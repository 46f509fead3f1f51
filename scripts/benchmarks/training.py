#!/usr/bin/env python
"""What a training step costs on the CPU, and what each lever gives; `gpu.py` measures a GPU.

    scripts/benchmarks/training.py --out scripts/benchmarks/training.json

1. The world on the CPU: the naive loop, each lever alone, all together. Turns of a few steps are interleaved, so that
   whatever else the machine does falls on all alike; a ratio is that of two turns of one repetition.
2. The loader alone: JPEG of 512 x 512 pixels, a second and core, and where the time goes.

It ends with a verdict on each goal, and with exit code 1 if one is not met.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.benchmarks.goals import Verdict, exit_code, loader_verdict, training_verdicts
from scripts.benchmarks.training_inputs import loader_speed, world_workload
from scripts.benchmarks.training_levers import ALL, NAIVE, NAMES, Levers, Loop, Turn, Workload, measured_peak
from seecoder.weights.atomic import atomic_path

Part = Iterator[tuple[str, Any, list[Verdict]]]  # name, what was found, what is said of it


class Measurement:
    """Turns of all variants of a workload, interleaved.

    Args:
        work: What is trained.
        variants: Loops by name; the naive one among them.
    """

    def __init__(self, work: Workload, variants: dict[str, Levers]) -> None:
        self.work, self.variants = work, variants
        self.turns: dict[str, list[Turn]] = {name: [] for name in variants}
        self.memory: dict[str, float] = {}
        self.losses: dict[str, float] = {}
        self.too_large: list[str] = []
        self._loops: dict[str, Loop] = {}
        self.peak = measured_peak(work.device)

    def run(self, steps: int, repetitions: int) -> None:
        """Measure; every other repetition goes backwards."""
        for repetition in range(repetitions):
            self.peak = max(self.peak, measured_peak(self.work.device))
            for name in list(self.variants)[:: -1 if repetition % 2 else 1]:
                if name in self.too_large:
                    continue
                try:
                    self.turns[name].append(self._turn(name, steps))
                except torch.OutOfMemoryError:
                    self.too_large.append(name)
                    torch.cuda.empty_cache()
        for loop in self._loops.values():
            loop.close()

    def _turn(self, name: str, steps: int) -> Turn:
        loop = self._loops.get(name) or Loop(self.work, self.variants[name])
        try:
            if name not in self._loops:
                self._start(name, loop)
            turn = loop.turn(steps)
        except BaseException:
            self._loops.pop(name, None)
            loop.close()
            raise
        if self.work.kept:
            self._loops[name] = loop
        else:
            loop.close()
        return turn

    def _start(self, name: str, loop: Loop) -> None:
        """Take the first step, which is not measured: compiling, first touch of memory, starting of readers."""
        begun = time.perf_counter()
        loop.turn(1)
        print(f"  {name}: ready after {time.perf_counter() - begun:.1f} s", file=sys.stderr, flush=True)
        self.losses.setdefault(name, loop.first_loss or 0.0)
        if name not in self.memory:
            self.memory[name] = loop.memory()

    def rows(self) -> list[dict[str, Any]]:
        """What was found; the first entry is about the whole."""
        measured = [name for name in self.variants if name not in self.too_large]
        processor = [turn.processor / turn.seconds for name in measured for turn in self.turns[name]] or [0.0]
        head = {
            "workload": self.work.name,
            "device": str(self.work.device),
            "peak_flops": self.peak,
            "peak_origin": "measured, matrix product",
            "processors_used": statistics.median(processor),
            "processors_used_least": min(processor),
            "out_of_memory": self.too_large,
        }
        return [head, *map(self._row, measured)]

    def _row(self, name: str) -> dict[str, Any]:
        turns, levers = self.turns[name], self.variants[name]
        # Pairs of one repetition; fewer, or none, if the naive loop itself ran out of memory.
        ratios = [one.speed / other.speed for one, other in zip(turns, self.turns[NAIVE], strict=False)]
        speed = statistics.median(turn.speed for turn in turns)
        return {
            "lever": name,
            "batch": self.work.batches[levers.large_batch],
            "images_per_second": speed,
            "ratio": statistics.median(ratios) if ratios else None,
            "ratio_least": min(ratios, default=None),
            "ratio_most": max(ratios, default=None),
            "mfu": speed * self.work.flops(levers) / self.peak,
            "mib_per_image": self.memory[name] / 2**20,
            "input_share": statistics.median(turn.waited / turn.seconds for turn in turns),
            "first_loss": self.losses[name],
        }


def print_speeds(rows: list[dict[str, Any]]) -> None:
    head, *rows = rows
    print(f"\n{head['workload']}; 100 % is {head['peak_flops'] / 1e12:.3g} TFLOP/s ({head['peak_origin']})")
    print(f"processors busy with it: {head['processors_used']:.2f} (least {head['processors_used_least']:.2f})\n")
    print("| loop | batch | images/s | x naive (least-most) | MFU | MiB/image | input | loss of step 1 |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        ratio = "no naive loop"
        if row["ratio"] is not None:
            ratio = f"{row['ratio']:.2f} ({row['ratio_least']:.2f}-{row['ratio_most']:.2f})"
        print(
            f"| {row['lever']} | {row['batch']} | {row['images_per_second']:.1f} | {ratio} | {row['mfu']:.1%} | "
            f"{row['mib_per_image']:.1f} | "
            f"{row['input_share']:.1%} | {row['first_loss']:.4f} |"
        )
    for name in head["out_of_memory"]:
        print(f"| {name} | out of memory | | | | | | |")


def train(options: argparse.Namespace, work: Workload) -> list[dict[str, Any]]:
    """Measure a workload."""
    measurement = Measurement(work, work.variants(set(options.without), options.leave_one_out))
    measurement.run(options.steps, options.repetitions)
    rows = measurement.rows()
    print_speeds(rows)
    return rows


def world(options: argparse.Namespace, folder: Path) -> Part:
    """The world on the CPU."""
    rows = train(options, world_workload(folder, options.base))
    head, *loops = rows
    fast = next((row for row in loops if row["lever"] == ALL), None)
    yield "world", rows, list(training_verdicts(head, fast))


def loading(_: argparse.Namespace, folder: Path) -> Part:
    """The loader alone."""
    found = loader_speed(folder)
    print(f"\nLoader, JPEG 512 x 512 of {found['kilobytes']:.0f} kB: {found['per_second']:.0f} a second and core")
    print("; ".join(f"{name} {value:.2f} ms" for name, value in found["milliseconds"].items()))
    yield "loader", found, [loader_verdict(found["per_second"])]


PARTS: dict[str, Callable[[argparse.Namespace, Path], Part]] = {
    "world": world,
    "loader": loading,
}


def main() -> int:
    """Measure; 1 if a goal is not met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for all numbers")
    parser.add_argument("--base", type=Path, help="the world's base (data/world/base)")
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn (%(default)s)")
    parser.add_argument("--repetitions", type=int, default=5, help="turns of each loop (%(default)s)")
    parser.add_argument("--without", nargs="*", default=[], choices=sorted(NAMES), help="levers that are left out")
    parser.add_argument("--leave-one-out", action="store_true", help="also all levers but one")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS), help="(all)")
    parser.add_argument("--threads", type=int, help="of the CPU")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    versions = {name: version(name) for name in ("torch", "diffusers", "timm")} | {"python": platform.python_version()}
    settings = {name: getattr(options, name) for name in ("steps", "repetitions", "without")}
    result: dict[str, Any] = {"versions": versions, "threads": torch.get_num_threads(), "settings": settings}
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory() as temporary:
        for part in (PARTS[name] for name in PARTS if name in options.parts):
            for name, found, said in part(options, Path(temporary)):
                result[name] = found
                verdicts += said
                write(options.out, result | {"verdicts": [str(verdict) for verdict in verdicts]})
    print("", *verdicts, sep="\n")
    return exit_code(verdicts)


def write(path: Path | None, result: dict[str, Any]) -> None:
    """Keep what is measured so far: it must not be lost with what comes after it."""
    if path is not None:
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
