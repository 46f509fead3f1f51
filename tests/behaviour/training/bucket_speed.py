"""What buckets cost: pictures a second beside squares of equal area, of the loader, of the step, and of both.

    python -m tests.behaviour.training.bucket_speed

The same photographs of eight proportions are cut to squares and sorted into buckets. The step is that of the world's
SeeCoder. Turns are interleaved in one process, so that whatever else the machine does falls on both alike; a ratio is
the median of those of neighbouring turns, in processor seconds of one thread.
"""

import argparse
import io
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from data.shards.buckets import Buckets
from data.shards.building.shard_build import write_shard
from data.shards.manifest import Manifest, write_manifest
from train.settings import OptimizerSettings
from train.sources.shard_data import ShardPictures
from train.sources.stage_data import Position
from train.stages.seecoder import SeeCoderStage

ROOT = Path(__file__).parents[3]
PROPORTIONS = ((2, 3), (3, 2), (3, 4), (4, 3), (1, 1), (9, 16), (16, 9), (4, 5))
SHARDS, BATCH = 4, 8
KINDS = ("squares", "buckets")


def write_photographs(folder: Path, shorter: int, count: int) -> Path:
    """Write shards of JPEG of all proportions, whose shorter sides have so many pixels."""
    folder.mkdir(parents=True)
    rows = []
    for shard in range(SHARDS):
        shapes = [(shorter * high // min(high, wide), shorter * wide // min(high, wide)) for high, wide in PROPORTIONS]
        sizes = itertools.islice(itertools.cycle(shapes), count)
        samples = ((f"{number:04d}", {"jpg": photograph(*size, seed=number)}) for number, size in enumerate(sizes))
        rows.append(write_shard(folder / f"{shard:05d}.tar", samples))
    write_manifest(folder, Manifest(tuple(rows), ("jpg",)))
    return folder


def photograph(height: int, width: int, seed: int) -> bytes:
    """A JPEG whose bytes are about those of a photograph: smooth shapes, edges and grain."""
    random = np.random.default_rng(seed)
    picture = random.normal(0, 4, (height, width, 3))
    for cells in (4, 16, 64, 256):  # every octave with the same power
        part = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        picture += np.asarray(part.resize((width, height), Image.Resampling.BICUBIC)) / 4
    with io.BytesIO() as file:
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        return file.getvalue()


def read(folder: Path, size: int, kind: str) -> Iterator[dict[str, Any]]:
    """Batches of a training, endless, read while they are asked for."""
    buckets = Buckets(BATCH, (size,), size // 8) if kind == "buckets" else None
    data = ShardPictures(BATCH, str(folder), image_size=size, buckets=buckets, held_out=0)
    data.position = lambda **_: Position(0, 1 << 20)  # type: ignore[method-assign]
    with redirect_stdout(io.StringIO()):
        return iter(data.train_dataloader())


def make_step() -> Callable[[dict[str, Any]], None]:
    """One optimizer step of the world's SeeCoder on a batch."""
    config = yaml.safe_load((ROOT / "configs" / "world_seecoder.yaml").read_text())["stage"]["init_args"]
    kept = {name: config[name] for name in ("base", "backbone_weights", "encoder")}
    stage = SeeCoderStage(OptimizerSettings(lr=1e-4), **kept).train()
    optimizer: Any = stage.configure_optimizers()

    def step(batch: dict[str, Any]) -> None:
        stage.loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def ratio(works: dict[str, Callable[[], int]], repetitions: int) -> tuple[dict[str, float], float]:
    """Pictures a second of two works, by turns, and how many times as many the second one gives."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repetitions + 1):
        for name in list(works)[:: -1 if turn % 2 else 1]:
            begin = time.process_time()
            count = works[name]()
            if turn:
                found[name].append(count / (time.process_time() - begin))
    ours, theirs = found.values()
    rates = {name: statistics.median(values) for name, values in found.items()}
    return rates, statistics.median(second / first for first, second in zip(ours, theirs, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="side of the loader's squares (%(default)s)")
    parser.add_argument("--step-size", type=int, default=64, help="side of the step's squares (%(default)s)")
    parser.add_argument("--batches", type=int, default=8, help="of a turn (%(default)s)")
    parser.add_argument("--repetitions", type=int, default=5, help="turns of each kind (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size, small = options.size, options.step_size

    def turns(what: str, work: Callable[[dict[str, Any]], Any], batches: dict[str, Iterator[dict[str, Any]]]) -> None:
        def turn(kind: str) -> Callable[[], int]:
            def run() -> int:
                for batch in itertools.islice(batches[kind], options.batches):
                    work(batch)
                return options.batches * BATCH

            return run

        rates, times = ratio({kind: turn(kind) for kind in KINDS}, options.repetitions)
        print(what, *(f"{kind} {rate:.1f} images/s" for kind, rate in rates.items()), f"ratio {times:.3f}", sep="  ")
        sys.stdout.flush()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = {f"loader, shorter sides {side}": side for side in (size, 2 * size)}
        for what, side in places.items():
            stored = write_photographs(folder / str(side), side, 16)
            turns(what, lambda batch: None, {kind: read(stored, size, kind) for kind in KINDS})
        stored, step = write_photographs(folder / str(small), small, 64), make_step()
        kept = {kind: list(itertools.islice(read(stored, small, kind), 3 * options.batches)) for kind in KINDS}
        turns("step alone", step, {kind: itertools.cycle(batches) for kind, batches in kept.items()})
        turns("step that reads for itself", step, {kind: read(stored, small, kind) for kind in KINDS})
        shapes = {tuple(batch["pixels"].shape[2:]) for batch in kept["buckets"]}
        area = statistics.mean(batch["pixels"][0, 0].numel() for batch in kept["buckets"]) / small**2
        print(f"{len(shapes)} shapes, of {area:.3f} of the squares' area on the mean")


if __name__ == "__main__":
    main()
