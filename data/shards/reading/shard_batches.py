"""Batches by position: `ShardBatches[position]` is the batch that begins at a position of the plan's endless sequence.

Nothing else decides what is in it, so torch's `DataLoader` may call it from any number of workers, started in any
way: there is no splitting to get wrong.
"""

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from data.shards.plan import Plan
from data.shards.reading.shard_reader import BadSample, ShardReader
from data.shards.reading.skips import NoReadableSample, Skip, reason_category
from data.shards.reading.square_image import Transform, UnusableSample
from data.shards.remote.fetcher import Fetcher
from data.shards.shard_set import ShardSet
from seecoder.images.gate import ImageError

SKIPS = "_skips"  # travels from the worker to the loader inside the batch, and is taken out there
_MOST_SUBSTITUTES = 64


class ShardBatches(Dataset[dict[str, Any]]):
    """Batches of consecutive positions of a plan.

    Args:
        shards: The shards.
        plan: Their order.
        transform: Makes an example from a sample.
        batch_size: Samples in a batch.
        fetcher: Fetches https shards.
        endless: True: positions go on into the next epoch. False: there is one epoch, and what lies beyond its end are
            repetitions of its beginning that are marked as not `valid`.
    """

    def __init__(
        self,
        shards: ShardSet,
        plan: Plan,
        transform: Transform,
        batch_size: int,
        fetcher: Fetcher | None = None,
        endless: bool = True,
    ) -> None:
        self.plan, self.transform, self.batch_size, self.endless = plan, transform, batch_size, endless
        # Two blocks of shards: a batch may straddle the border between them.
        self.reader = ShardReader(shards, transform.members, fetcher, most_open=2 * plan.window)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Make the batch that begins at position `index`.

        Returns:
            The stacked tensors and lists of `transform`, and `sample_id`, `epoch` (int64) and `valid` (bool),
            (batch_size,) each.

        Raises:
            RuntimeError: No readable substitute was found for an unreadable sample.
        """
        skips: list[Skip] = []
        examples = []
        for position in range(index, index + self.batch_size):
            valid = self.endless or position < len(self.plan)
            example = self._example(position if self.endless else position % len(self.plan), skips if valid else [])
            examples.append(example | {"valid": example["valid"] and valid})
        return _stack(examples) | {SKIPS: tuple(skips)}

    def _example(self, position: int, skips: list[Skip]) -> dict[str, Any]:
        """Make the example at a position, or at that of the first substitute that can be read."""
        place = self.plan.place(position)
        for attempt in range(_MOST_SUBSTITUTES + 1):
            epoch, shard, number, sample_id = place
            try:
                sample = self.reader.read(shard, number)
                example = self.transform(sample, epoch, sample_id)
                self._check_shape(example, sample_id)
            except (BadSample, ImageError, UnusableSample) as error:
                if attempt == 0:  # substitutes are counted at their own positions
                    skips.append(self._skip(error, shard, number, sample_id))
                place = self.plan.substitute(position, attempt)
            else:
                # A substitute is not what the evaluation asked for; in training it fills the batch.
                ids = {"sample_id": torch.tensor(sample_id), "epoch": torch.tensor(epoch)}
                return example | ids | {"valid": self.endless or attempt == 0}
        first = skips[-1].detail if skips else "see the log"
        raise NoReadableSample(
            f"No readable sample in {_MOST_SUBSTITUTES} attempts at position {position} ({first}). Check that the "
            "shards are where the manifest says."
        )

    def _check_shape(self, example: dict[str, Any], sample_id: int) -> None:
        """Refuse a picture that has not the size by which the plan has put it into a batch."""
        if self.plan.shapes is None or self.plan.buckets is None:
            return
        if tuple(example["pixels"].shape[1:]) != tuple(self.plan.shapes[self.plan.buckets[sample_id]]):
            raise UnusableSample("size that is not the manifest's", "measure it anew (`python -m data.build index`)")

    def _skip(self, error: Exception, shard: int, number: int, sample_id: int) -> Skip:
        if isinstance(error, BadSample):
            return Skip(sample_id, error.reason, error.name, error.detail)
        name = f"{self.reader.shards.shards[shard].label}[{number}]"
        reason = (
            error.reason if isinstance(error, UnusableSample) else reason_category(getattr(error, "reason", str(error)))
        )
        return Skip(sample_id, reason, name, f"{name}: {error}")


def _stack(examples: list[dict[str, Any]]) -> dict[str, Any]:
    columns = {name: [example[name] for example in examples] for name in examples[0]}
    batch: dict[str, Any] = columns | {  # pixels lie together for each place, and NumPy sorts them faster than torch
        name: torch.from_numpy(np.stack(column)) for name, column in columns.items() if torch.is_tensor(column[0])
    }
    return batch | {"valid": torch.tensor(columns["valid"])}
