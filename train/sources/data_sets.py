"""Data sets of a run: where their shards are, how often an epoch goes through each, and how its pictures are cut."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import numpy as np

from data.shards.buckets import Buckets, describe_enlarged, describe_waste
from data.shards.index import Kinds
from data.shards.manifest import IMAGE_MEMBERS
from data.shards.picture_sizes import all_sizes
from data.shards.plan import Plan
from data.shards.remote.fetcher import Fetcher
from data.shards.shard_set import ShardSet, open_shards
from seecoder.checks import Rule, check, require, whole


@dataclass(frozen=True)
class DataSet:
    """Shards with settings of their own.

    Attributes:
        shards: Folder or https URL.
        repeats: How often an epoch goes through them: the weight of the set. Each time is another crop and noise.
        crop: "center" or "random"; None: that of the source.
        flip: Mirror half of the samples; None: as the source has it.
    """

    shards: str
    repeats: int = 1
    crop: Literal["center", "random"] | None = None
    flip: bool | None = None

    def __post_init__(self) -> None:
        check(self, repeats=whole(1))

    @property
    def own(self) -> dict[str, Any]:
        """Settings that are not those of the source."""
        return {name: value for name in ("crop", "flip") if (value := getattr(self, name)) is not None}


Places = str | list[str | DataSet]


def data_sets(places: Any) -> list[DataSet]:
    """Data sets as a configuration gives them: a folder or URL, a list of these, with settings or without, or None."""
    entries = [] if places is None else places if isinstance(places, list) else [places]
    settings = [one if isinstance(one, Mapping) else {"shards": one} for one in entries]
    return [one if isinstance(one, DataSet) else DataSet(**given) for one, given in zip(entries, settings, strict=True)]


def open_sets(
    sets: Sequence[DataSet], fetcher: Fetcher | None = None, needed: Kinds = (IMAGE_MEMBERS,)
) -> tuple[ShardSet, tuple[int, ...]]:
    """Open the shards of all sets, those of each as often as an epoch goes through it.

    Returns:
        The shards, and the number of the first sample of each set.

    Raises:
        FileNotFoundError: A place does not exist or holds no shards.
        ValueError: A place is no folder or URL of shards.
    """
    opened = [open_shards(one.shards, fetcher, needed) for one in sets]
    counts = [sum(shards.counts) * one.repeats for shards, one in zip(opened, sets, strict=True)]
    rows = tuple(row for shards, one in zip(opened, sets, strict=True) for row in shards.shards * one.repeats)
    passed = tuple(skip for shards in opened for skip in shards.passed)
    return ShardSet(rows, passed, needed[0]), tuple(accumulate(counts[:-1], initial=0))


def make_order(shards: ShardSet, buckets: Buckets | None, batch_size: int, seed: int, window: int) -> Plan:
    """Order of the samples: plain, or in groups of one bucket.

    Raises:
        ValueError: A manifest holds no sizes, or a batch would have several shapes.
    """
    if buckets is None:
        return Plan(shards.counts, seed=seed, window=window)
    whole_batches = Rule(lambda group: group % batch_size == 0, f"a multiple of `batch_size`={batch_size}")
    require("buckets.group", buckets.group, whole_batches)
    sizes = all_sizes(row.shard for row in shards.shards)
    shapes, labels = np.unique(buckets.choose(sizes), axis=0, return_inverse=True)
    labels = labels.reshape(-1)
    return Plan(shards.counts, seed=seed, window=window, buckets=labels, shapes=shapes, group=buckets.group)


def describe_shapes(shards: ShardSet, buckets: Buckets | None, image_size: int) -> str:
    """Say what it costs to train pictures at their shapes; nothing where squares enlarge none, or no size is known."""
    try:
        sizes = all_sizes(row.shard for row in shards.shards)
    except ValueError:  # squares need none
        return ""
    if buckets is None:
        return describe_enlarged(sizes, image_size)
    return describe_waste(sizes, buckets.choose(sizes), buckets.group)
