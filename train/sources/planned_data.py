"""What a run will read, as `python -m train plan` says it: samples, shards, caches, what is held out."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from data.shards.buckets import Buckets
from data.shards.index import needed_kinds
from data.shards.reading.shard_loader import check_readers
from data.shards.reading.skips import check_passed
from data.shards.remote.addresses import redacted
from data.shards.shard_set import ShardSet, check_location, expand_place, is_there, open_shards
from train.settings import RunSettings
from train.sources.caches import find_caches
from train.sources.data_sets import data_sets, describe_shapes, make_order, open_sets
from train.sources.folder import is_built, planned_shards
from train.sources.held_out import check_apart, listed

NEEDED = ("image_member", "reference", "mask")  # arguments of a source


def open_if_there(source: Mapping[str, Any]) -> ShardSet | None:
    """Open a run's shards; None where they lie on a server or are not built yet."""
    if is_built(source):
        return planned_shards(source)
    given = data_sets(source.get("shards"))
    if not given or not all(is_there(one.shards) for one in given):
        for place, _ in (pair for one in given for pair in expand_place(one.shards)):
            with suppress(FileNotFoundError):  # it may be there when the run begins
                check_location(place)
        return None
    return open_sets(given, needed=needed_kinds(*map(source.get, NEEDED)))[0]


def held_out_lines(class_path: str, source: Mapping[str, Any]) -> Iterator[str]:
    """One line on what evaluation will use; none where nothing is held out in shards.

    Raises:
        ValueError: Arguments of the data source are impossible, or held-out shards are those of the training.
    """
    if not class_path.endswith(".ShardPictures"):
        return
    from train.sources.shard_data import check_reading

    places = source["held_out_shards"]
    check_reading(source)
    if places is None:
        return
    held_out = listed(places)
    check_apart(listed(source.get("shards")), held_out)
    missing = [place for place in held_out if "://" not in place and not is_there(place)]
    verb = "build" if is_built(source) else "want"
    note = f"; {', '.join(missing)} not built yet, and `fit` will {verb} it" if missing else ""
    there = [place for place in held_out if is_there(place)]
    found = open_shards(there, needed=needed_kinds(*map(source.get, NEEDED))) if there else ShardSet(())
    check_passed(found.passed, sum(found.counts), source["ceiling"])
    count = min(source["held_out"], sum(found.counts)) if len(there) == len(held_out) else f"up to {source['held_out']}"
    yield f"held out {count} samples of {', '.join(redacted(place) for place in held_out)}{note}"


def data_lines(
    run: RunSettings,
    options: Mapping[str, Any] | None,
    source: Mapping[str, Any],
    shards: ShardSet | None,
    samples_a_step: int,
) -> Iterator[str]:
    """Lines on samples, epochs, shards for each reader, what is cached, and what buckets cost.

    Args:
        run: Settings of the run.
        options: Arguments of a stage that takes caches; None for other stages.
        source: Arguments of the data source.
        shards: Its shards, if they are there.
        samples_a_step: Samples of one optimizer step over all processes.

    Raises:
        ValueError: There are fewer shards than readers, or no samples.
    """
    places = source.get("shards")
    if places is None:
        count = source.get("pool_size")
        if count:
            yield f"data     {count:,} samples in memory, {run.max_steps * samples_a_step / count:.1f} epochs"
        return
    processes, workers = run.devices * run.num_nodes, max(1, source.get("num_workers", 0))
    readers = processes * workers
    who = f"{readers} readers ({processes} processes x {workers})"
    if shards is None:
        raw = "; estimates assume raw pictures, neither latents nor maps cached" if options is not None else ""
        named = ", ".join(redacted(place) for place in listed(places))
        yield f"data     {named}: not looked at; {who} need at least {readers} shards{raw}"
        return
    counts = shards.counts
    check_passed(shards.passed, sum(counts), source.get("ceiling", 0.01))
    check_readers(len(counts), processes, workers)
    has_sizes = not is_built(source) or shards.shards[0].shard.sizes is not None
    buckets = Buckets(**source["buckets"]) if source.get("buckets") and has_sizes else None
    window, cached = source.get("window", 8), ""
    make_order(shards, buckets, source["batch_size"], seed=0, window=window)  # refuses what `fit` would refuse
    if options is not None:
        caches = find_caches(options, source, shards)
        latents, maps = caches["autoencoder"], caches["backbone"]
        cached = f"; cached latents beside {latents} of the pictures, backbone maps beside {maps}"
    yield (
        f"data     {sum(counts):,} samples in {len(counts):,} shards: {len(counts) / readers:.1f} for each of {who}, "
        f"{min(window, len(counts))} open at a time; {run.max_steps * samples_a_step / sum(counts):.2f} epochs{cached}"
    )
    if shapes := describe_shapes(shards, buckets, source.get("image_size", 0)):
        yield f"{'buckets ' if buckets else 'pictures'} {shapes}"
