"""Held-out samples are of no use if a run trains on them."""

from collections.abc import Sequence
from pathlib import Path

from data.shards.building.finding import content_digest
from data.shards.manifest import MANIFEST
from data.shards.remote.addresses import folder_address, redacted
from data.shards.shard_set import ShardSet, is_there, open_shards
from train.sources.data_sets import Places, data_sets

HELD_OUT_SEED = 1_000_003  # added to the seed: held-out scenes come from another stream


def listed(places: Places | list[str] | None) -> list[str]:
    """Folders or URLs as a list, as a configuration gives one, several or none."""
    return [one.shards for one in data_sets(places)]


def check_apart(training: Sequence[str], held_out: Sequence[str]) -> None:
    """Refuse shards that a run would both train on and evaluate with.

    Shards are known by where they lie and by their bytes, if one has no manifest by size and beginning; caches by the
    shards that they were made of; of those on a server, only where they lie.

    Args:
        training: Folders or URLs of shards.
        held_out: Folders or URLs of the shards for evaluation.

    Raises:
        ValueError: Some are the same.
    """
    sets = {place: _open_if_there(place) for place in (*training, *held_out)}
    unhashed = any(not one.is_hashed for one in sets.values() if one.shards)
    known = {mark: place for place in training for mark in _marks(place, sets[place], unhashed)}
    for place in held_out:
        for mark in _marks(place, sets[place], unhashed):
            if mark in known:
                raise ValueError(
                    f"`held_out_shards`={redacted(place)} must hold other samples than "
                    f"`shards`={redacted(known[mark])}: the run would train on what it is evaluated with. Build "
                    "held-out shards from other pictures."
                )


def check_scenes(training: Sequence[str], seed: int) -> None:
    """Refuse shards of the world with the scenes of the evaluation.

    Args:
        training: Folders or URLs of shards.
        seed: Seed of the held-out scenes.

    Raises:
        ValueError: They are scenes of this seed.
    """
    for place in training:
        for row in _open_if_there(place).shards:
            if row.settings.get("kind") == "world" and row.settings.get("seed") == seed:
                raise ValueError(
                    f"`shards`={redacted(place)} must hold other scenes than those of seed {seed}, which are held out. "
                    "Build them with another --seed, or change data.init_args.seed."
                )


def _open_if_there(place: str) -> ShardSet:
    """Shards of a folder; none where it does not exist, or lies on a server."""
    return open_shards(place) if is_there(place) else ShardSet(())


def _marks(place: str, shards: ShardSet, unhashed: bool) -> set[str]:
    """What two names of the same samples have in common; `unhashed`: some of those to compare have no sha256."""
    if not shards.shards:
        return {redacted(folder_address(place, MANIFEST)).rstrip("/")}
    marks = {str(Path(row.location).resolve()) for row in shards.shards}
    marks |= {shards.fingerprint} if shards.is_hashed else set()
    marks |= {row.shard.sha256 for row in shards.shards if row.shard.sha256 and row.shard.samples}
    marks |= {content_digest(Path(row.location)) for row in shards.shards if unhashed and row.shard.samples}
    return marks | {str(row.settings["shards_sha256"]) for row in shards.shards if "shards_sha256" in row.settings}
