"""What lies beside the pictures of a run's shards, and how much of it the run will take in place of computing it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from data.shards.buckets import Buckets
from data.shards.caching.cache_source import CacheSource, check_cache
from data.shards.caching.maps import MapsSource
from data.shards.caching.moments import MomentsSource
from data.shards.reading.square_image import SquareImage
from data.shards.shard_set import ShardSet
from train.sources.data_sets import data_sets


@dataclass(frozen=True)
class Cached:
    """One kind of thing that `python -m data.cache` lays beside pictures.

    Attributes:
        there: Fraction of the samples that have it.
        aside: Why the run takes none of it; empty where it does.
    """

    there: float = 0.0
    aside: str = ""

    @property
    def used(self) -> float:
        """Fraction of the samples for which the run need not compute it."""
        return 0.0 if self.aside else self.there

    def __str__(self) -> str:
        return f"{self.there:.0%}" + (f" (left aside: {self.aside})" if self.there and self.aside else "")


def find_caches(options: Mapping[str, Any], source: Mapping[str, Any], shards: ShardSet | None) -> dict[str, Cached]:
    """Say what a run will take from its shards; nothing from shards that nobody looked at.

    Args:
        options: Arguments of the stage.
        source: Arguments of the data source.
        shards: Its shards, if they are there.

    Returns:
        What is cached in place of the "autoencoder" and of the "backbone".
    """
    found = {}
    for kind in (MomentsSource, MapsSource):
        aside = "" if source.get(f"cached_{kind.kind}", False) else f"`cached_{kind.kind}` is false"
        if source.get("image_member"):
            aside = aside or "`image_member` is set, and they are of the usual picture"
        if kind is MapsSource and options.get("encoder_size") is not None:
            aside = aside or "`encoder_size` is set"
        if kind is MapsSource and source.get("reference"):
            aside = aside or "the encoder sees the reference"
        found[kind.model] = Cached(_fraction(shards, kind), aside)
    return found


def _fraction(shards: ShardSet | None, kind: type[CacheSource]) -> float:
    """Fraction of samples with a cache by the manifests, which require it of no sample, because bad ones have none."""
    if shards is None:
        return 0.0
    has = (row.shard.samples for row in shards.shards if kind.kind in row.settings or kind.member() in row.members)
    return sum(has) / max(1, sum(shards.counts))


def check_caches(options: Mapping[str, Any], source: Mapping[str, Any], shards: ShardSet) -> None:
    """Refuse what the run would refuse; only whose weights made a cache has to wait until these are read.

    Args:
        options: Arguments of `train.stages.seecoder.SeeCoderStage`.
        source: Arguments of `train.sources.shard_data.ShardPictures`.
        shards: Its shards.

    Raises:
        WeightsError: A cache is of another size, dtype or crop, of other buckets, or lacks mirrored pictures.
    """
    found = find_caches(options, source, shards)
    buckets = Buckets(**source["buckets"]) if source.get("buckets") else None
    picture = SquareImage(source["image_size"], crop=source["crop"], flip=source["flip"], buckets=buckets)
    crop = replace(picture, crop="center").cut_name
    images = [replace(picture, **one.own) for one in data_sets(source["shards"])]
    # Of the run's own source all is known but the model: it is taken to be the one that made the cache.
    for kind, dtype in ((MomentsSource, "vae_dtype"), (MapsSource, "frozen_dtype")):
        for row in shards.shards if found[kind.model].used else ():
            if kind.kind in row.settings:
                own = {"dtype": options.get(dtype, "float32"), "size": picture.unit, "crop": crop}
                for image in images:
                    check_cache(ShardSet((row,)), image, kind.from_settings(row.settings[kind.kind], **own))
