"""How fast pictures are read, on one core, beside torchvision.io alone.

    python -m tests.behaviour.shards.reading_speed

Turns are interleaved, so that whatever else the machine does falls on all alike; a ratio is that of neighbouring turns.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from data.shards.plan import Plan
from data.shards.reading.shard_batches import ShardBatches
from data.shards.reading.shard_reader import ShardReader
from data.shards.reading.square_image import SquareImage
from data.shards.shard_set import open_shards
from scripts.benchmarks.training_inputs import write_pictures

BATCH = 16
GOAL = 8, 2000  # cores, and images that they shall read in a second


def turns(works: dict[str, Callable[[], Tensor]], repetitions: int) -> dict[str, list[float]]:
    """Processor seconds a picture, by turns of one batch each; the first turn does not count."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repetitions + 1):
        for name in list(works)[:: -1 if turn % 2 else 1]:
            begin = time.process_time()
            count = len(works[name]())
            if turn:
                found[name].append((time.process_time() - begin) / count)
    return found


def ratio(found: dict[str, list[float]], own: str, other: str) -> float:
    """How many times as many pictures a second `own` gives as `other`."""
    return statistics.median(theirs / ours for ours, theirs in zip(found[own], found[other], strict=True))


def show(found: dict[str, list[float]]) -> None:
    for name, seconds in found.items():
        print(f"{name}: {1 / statistics.median(seconds):.1f} images/s")


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder, positions = Path(temporary), itertools.count(step=BATCH)
        write_pictures(folder / "squares", shards=4, count=32)
        shards = open_shards(folder / "squares")
        plan, reader = Plan(shards.counts), ShardReader(shards)
        own = ShardBatches(shards, plan, SquareImage(512), BATCH)

        def by_torchvision() -> Tensor:
            first, parts = next(positions), []
            for place in map(plan.place, range(first, first + BATCH)):
                content = bytearray(reader.read(place.shard, place.number)["jpg"])
                parts.append(decode_jpeg(torch.frombuffer(content, dtype=torch.uint8), mode=ImageReadMode.RGB))
            return torch.stack(parts)

        first = own[0]["pixels"]
        works = {"loader": lambda: own[next(positions)]["pixels"], "torchvision.io, same bytes": by_torchvision}
        found = turns(works, 10)
        positions = itertools.count(step=BATCH)
        assert torch.equal(first, by_torchvision()), "same pixels"
        show(found)
        cores, asked = GOAL
        held = cores / statistics.median(found["loader"])
        print(f"on {cores} cores, if they scale: {held:.0f} images/s (goal: {asked})")
        print(f"loader / torchvision.io: {ratio(found, *works):.3f}")


if __name__ == "__main__":
    main()
