"""Pictures from shards, with a note of what each micro-batch of each process held."""

import json
import os
from pathlib import Path
from typing import Any

from train.sources.shard_data import ShardPictures


class NotedPictures(ShardPictures):
    """Notes process, optimizer step, rank and samples in `FOLDER.order`, beside the run's folder."""

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        trainer: Any = self.trainer
        line = [os.getpid(), trainer.global_step, trainer.global_rank, batch["keys"].tolist()]
        with order_file(Path(trainer.default_root_dir)).open("a") as file:
            file.write(json.dumps(line) + "\n")
        return super().transfer_batch_to_device(batch, device, dataloader_idx)


def order_file(folder: Path) -> Path:
    """Where the order of a run is noted."""
    return folder.with_name(folder.name + ".order")


def read_order(folder: Path) -> list[dict[tuple[int, int], list]]:
    """For each start of a process: the samples of its micro-batches by optimizer step and rank."""
    starts: dict[int, dict[tuple[int, int], list]] = {}
    for line in order_file(folder).read_text().splitlines():
        process, step, rank, keys = json.loads(line)
        starts.setdefault(process, {}).setdefault((step, rank), []).append(keys)
    return list(starts.values())


def assert_same_order(folder: Path, whole: Path, last_step: int, ranks: int = 1) -> None:
    """Every start read what the uninterrupted run read at those steps; the last ones read to the end."""
    expected: dict[tuple[int, int], list] = {}
    for start in read_order(whole):
        expected.update(start)
    assert expected.keys() == {(step, rank) for step in range(last_step) for rank in range(ranks)}
    starts = read_order(folder)
    for start in starts:
        for place, batches in start.items():
            assert batches == expected[place][: len(batches)], place
    for rank in range(ranks):
        (*_, last) = (start for start in starts if any(place[1] == rank for place in start))
        first = min(step for step, _ in last)
        assert {place: expected[place] for place in last} == last
        assert {step for step, _ in last} == set(range(first, last_step))
