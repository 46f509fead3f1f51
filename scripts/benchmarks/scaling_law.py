#!/usr/bin/env python
"""Measure the laws that `python -m train scale` computes with, on this machine, and try them on two processes.

    scripts/benchmarks/scaling_law.py --out scripts/benchmarks/scaling_law.json

1. A training step of the world by micro-batch, whole and by part, one process of one thread: fixed cost and slope.
2. Gloo's all-reduce between processes, up to the 99 million gradients of a full SeeCoder: latency and bandwidth.
3. The loader: JPEG of 512 x 512 pixels a second and core; opening a shard; writing a checkpoint.
4. Two processes with exchange (DDP): what 1 and 2 predict, and what is measured. Two beside each other without any
   exchange say how much of the difference is the machine's, whose cores share memory.

It takes some three minutes on two cores that do nothing else. Ctrl-C prints and keeps what was measured so far.
"""

import argparse
import json
import math
import platform
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.benchmarks.scaling_measurements import CONFIG, OPTIMIZER, ROOT, measure_disk, run_group
from scripts.benchmarks.training_inputs import loader_speed
from seecoder.weights.safetensors_files import atomic_path
from train.estimate.costs import count_costs
from train.estimate.known_bases import base_sizes
from train.estimate.scaling import buckets, fit_line, micro_batch_seconds, ring_seconds

PARTS = ("steps", "pair", "exchange", "loader")
GRADIENTS = 98_913_792  # of the published SeeCoder (`python -m train plan --config configs/sd15.yaml`)
BUSY = 0.8  # below this share of a processor a process was kept waiting, and times say little
GOAL = 0.1  # how far a prediction may be off


def line(places: list[float], values: list[float]) -> dict[str, float]:
    """Fit a line, and say how far it is off where it is worst."""
    fixed, slope = fit_line(places, values)
    worst = max(abs(fixed + slope * place - value) / value for place, value in zip(places, values, strict=True))
    return {"fixed": fixed, "slope": slope, "worst": worst}


def exchange_law(found: dict[str, list[float]], processes: int) -> dict[str, float]:
    """Latency of a ring's step and bandwidth, from times of all-reduce."""
    law, steps = line(found["bytes"], found["seconds"]), 2 * (processes - 1)
    bandwidth = steps / processes / law["slope"] if law["slope"] > 0 else math.inf  # noise, on a busy machine
    return {"latency": max(0.0, law["fixed"]) / steps, "bandwidth": bandwidth, "worst": law["worst"]}


def counted() -> dict[str, int]:
    """Operations of a picture of the world, by part."""
    config = yaml.safe_load(CONFIG.read_text())
    stage, size = config["stage"]["init_args"], config["data"]["init_args"]["image_size"]
    sizes = base_sizes(str(ROOT / stage["base"]))
    if sizes is None:
        raise RuntimeError(f"{stage['base']} has no sizes.")
    return dict(count_costs(stage["encoder"], sizes, size, frozen_dtype=stage["frozen_dtype"]).flops)


def measure(options: argparse.Namespace, result: dict[str, Any]) -> Iterator[None]:
    """Fill `result`, part by part."""
    sizes, rounds = options.batches, options.rounds
    if "steps" in options.parts:
        result["steps"] = run_group(1, {"sizes": sizes, "rounds": rounds})["steps"]
        yield
        result["flops"] = counted()
        yield
    if "pair" in options.parts:
        few = sorted({sizes[0], sizes[len(sizes) // 2], sizes[-1]})
        result["pair"] = run_group(2, {"sizes": few, "rounds": rounds})["steps"]
        yield
    if "exchange" in options.parts:
        amounts = sorted(
            {int(1e6 * size) for size in options.megabytes} | ({4 * GRADIENTS} if options.gradients else set())
        )
        for processes in options.processes:
            job = {"bytes": amounts, "exchanges": rounds}
            result.setdefault("exchange", {})[str(processes)] = run_group(processes, job)["exchange"]
            yield
    if "loader" in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            result["loader"] = {**loader_speed(Path(folder), options.seconds), **measure_disk(Path(folder), rounds)}
        yield


def print_parts(result: dict[str, Any]) -> None:
    """Parts of a step, and how their time compares with their operations."""
    found, flops = result["steps"], result.get("flops", {})
    whole = line(found["sizes"], found["alone"])
    print(f"One step of the world, one process of one thread, micro-batches of {found['sizes']}\n")
    print("| part | fixed, ms | ms a picture | worst misfit | share of the slope | share of operations | GFLOP/s |")
    print("|---|---|---|---|---|---|---|")
    laws = {name: line(found["sizes"], times) for name, times in found["parts"].items()}
    slopes = sum(law["slope"] for name, law in laws.items() if name != OPTIMIZER)
    for name, law in laws.items():
        counts = ["", "", ""]
        if name in flops:
            counts = [f"{law['slope'] / slopes:.0%}", f"{flops[name] / sum(flops.values()):.0%}"]
            counts.append(f"{flops[name] / law['slope'] / 1e9:.1f}")
        print(f"| {name} | {_law(law)} | {' | '.join(counts)} |")
    print(f"| whole step | {_law(whole)} | | | {sum(flops.values()) / whole['slope'] / 1e9:.1f} |")


def _law(law: dict[str, float]) -> str:
    return f"{1000 * law['fixed']:.1f} | {1000 * law['slope']:.2f} | {law['worst']:.0%}"


def print_exchange(result: dict[str, Any]) -> None:
    """All-reduce by number of processes."""
    print("\nGloo's all-reduce on this machine\n")
    first = next(iter(result["exchange"].values()))
    names = " | ".join(f"{size / 1e6:.0f} MB, ms" for size in first["bytes"])
    print(f"| processes | {names} | latency of a step, us | GB/s | worst misfit |")
    print("|---" * (4 + len(first["bytes"])) + "|")
    for processes, found in result["exchange"].items():
        law = exchange_law(found, int(processes))
        times = " | ".join(f"{1000 * seconds:.1f}" for seconds in found["seconds"])
        said = f"{1e6 * law['latency']:.0f} | {law['bandwidth'] / 1e9:.2f} | {law['worst']:.0%}"
        print(f"| {processes} | {times} | {said} |")


def print_loader(result: dict[str, Any]) -> None:
    """Reading and saving, and how to tell `python -m train scale`."""
    found = result["loader"]
    print(
        f"\nLoader: {found['per_second']:.0f} JPEG of 512 x 512 a second and core ({found['kilobytes']:.0f} kB each); "
        f"a shard's index of 1,000 samples of {found['index_bytes']:.0f} bytes is read in {found['opening_ms']:.1f} "
        f"ms; a checkpoint is written at {found['checkpoint_gb']:.2f} GB/s\n"
        f"python -m train scale ... --cluster.decodes_per_core {found['per_second']:.0f} --cluster.opening_ms "
        f"{found['opening_ms']:.1f} --cluster.checkpoint_gb {found['checkpoint_gb']:.2f}"
    )


def predictions(result: dict[str, Any]) -> list[dict[str, float]]:
    """Pictures a second of two processes: by the laws of one, by the laws and the machine, measured."""
    one, two = result["steps"], result["pair"]
    law = line(one["sizes"], one["alone"])
    ring = exchange_law(result["exchange"]["2"], 2)
    exchange = ring_seconds(
        two["gradient_bytes"], 2, ring["bandwidth"], ring["latency"], buckets(two["gradient_bytes"])
    )
    rows = []
    for size, alone, together in zip(two["sizes"], two["alone"], two["together"], strict=True):
        step = micro_batch_seconds(law["fixed"], law["slope"], size)
        rows.append(
            {
                "batch": size,
                "exchange_seconds": exchange,
                "one": size / step,
                "predicted": 2 * size / (step + exchange),
                "predicted_here": 2 * size / (alone + exchange),
                "measured": 2 * size / together,
            }
        )
    return rows


def print_predictions(result: dict[str, Any]) -> None:
    """What the laws say of two processes, and what they do."""
    rows = result["predictions"]
    print(
        f"\nTwo processes of one thread (DDP, {result['pair']['gradient_bytes'] / 1e6:.1f} MB of gradients, exchanged "
        f"in {1000 * rows[0]['exchange_seconds']:.1f} ms by the law, none of it hidden: the cores are busy)\n"
    )
    print(
        "| micro-batch | one | two, by the law | off by | by two without exchange | off by | two, measured (images/s) |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        by_law, by_pair = (row[name] / row["measured"] - 1 for name in ("predicted", "predicted_here"))
        print(
            f"| {row['batch']} | {row['one']:.1f} | {row['predicted']:.1f} | {by_law:+.0%} | "
            f"{row['predicted_here']:.1f} | {by_pair:+.0%} | {row['measured']:.1f} |"
        )
    worst = max(abs(row["predicted"] / row["measured"] - 1) for row in rows)
    said = "met" if worst <= GOAL else "NOT met"
    print(f"\ntwo processes by the law of one: {worst:.0%} off at worst, goal {GOAL:.0%}: {said}")


def show(result: dict[str, Any]) -> None:
    """Print what there is."""
    for name, printer in (("steps", print_parts), ("exchange", print_exchange), ("loader", print_loader)):
        if name in result:
            printer(result)
    if {"steps", "pair"} <= result.keys() and "2" in result.get("exchange", {}):
        result["predictions"] = predictions(result)
        print_predictions(result)
    for name in ("steps", "pair"):
        if name in result and result[name]["processor"] < BUSY:
            print(
                f"CAUTION: {name} had {result[name]['processor']:.0%} of a processor: the machine does something else."
            )


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for all numbers, written after each part")
    parser.add_argument("--rounds", type=_positive, default=5, help="how often each is measured (%(default)s)")
    parser.add_argument("--batches", type=_positive, nargs="+", default=[4, 8, 16, 32, 48], help="micro-batches")
    parser.add_argument("--megabytes", type=_positive, nargs="+", default=[1, 4, 16, 64], help="of an all-reduce")
    parser.add_argument("--no-gradients", dest="gradients", action="store_false", help="leave out 396 MB of gradients")
    parser.add_argument("--processes", type=_positive, nargs="+", default=[2, 4], help="of an all-reduce; 2 or more")
    parser.add_argument("--seconds", type=float, default=6.0, help="for the loader (%(default)s)")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="(all)")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least 1")
    return int(text)


def main() -> int:
    parser = build_parser()
    options = parser.parse_args()
    options.batches = sorted(set(options.batches))
    if len(options.batches) < 2 or len(options.megabytes) + options.gradients < 2 or min(options.processes) < 2:
        parser.error("a line needs two different sizes (--batches, --megabytes), an exchange two --processes")
    versions = {name: version(name) for name in ("torch", "diffusers", "timm")} | {"python": platform.python_version()}
    result: dict[str, Any] = {"versions": versions, "rounds": options.rounds}
    code = 0
    try:
        for _ in measure(options, result):
            print(
                f"measured: {', '.join(name for name in (*PARTS, 'flops') if name in result)}",
                file=sys.stderr,
                flush=True,
            )
            save(options.out, result)
    except KeyboardInterrupt:
        print("stopped; what was measured so far:", file=sys.stderr)
        code = 130
    show(result)
    save(options.out, result)
    return code


def save(out: Path | None, result: dict[str, Any]) -> None:
    if out is not None:
        with atomic_path(out) as path:
            path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
