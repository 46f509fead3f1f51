"""A plain folder of pictures as training data: built into shards before the first step, by the code of `data.build`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.command import build_aloud
from data.shards.building.claim import is_finished
from data.shards.building.finding import find_image_files, printable_name, split_held_out
from data.shards.building.image_files import ImageFiles
from data.shards.building.shard_build import Build
from data.shards.manifest import Shard
from data.shards.shard_set import LocatedShard, ShardSet, open_shards
from train.sources.held_out import listed

_MIN_SHARDS = 64  # if there are as many pictures: each reading process needs a shard of its own


def folder_builds(source: Mapping[str, Any]) -> Iterator[Build]:
    """What is built of `folder`: shards for training and, if there is a place for them, held-out ones.

    Args:
        source: Arguments of `train.sources.shard_data.ShardPictures`.

    Raises:
        ValueError: `shards` or `held_out_shards` are several places, or there are no pictures.
        OSError: The folder does not exist.
    """
    folder, places = Path(source["folder"]), [*listed(source["shards"]), *listed(source["held_out_shards"])]
    if len(listed(source["shards"])) != 1 or len(places) > 2 or "://" in "".join(places):
        raise ValueError(f"`folder`={folder} must go with one local folder in `shards`, and one in `held_out_shards`.")
    paths, notes = find_image_files(folder)
    print(*(f"{note}\n" for note in notes), sep="", end="", flush=True)
    held_out = max(1, min(source["held_out"], len(paths) // 10)) if len(places) > 1 and paths else 0
    for place, numbers in zip(places, split_held_out(paths, held_out), strict=False):
        names = [printable_name(paths[number].relative_to(folder)) for number in numbers]
        own = {"size": source["image_size"], "encode": "jpeg", "quality": 95, "max_pixels": 64_000_000}
        files = ImageFiles.from_paths([paths[number] for number in numbers], names, **own)
        yield Build(files, Path(place), max(1, min(1000, len(files) // _MIN_SHARDS)), None, source["ceiling"])


def build_folder(source: Mapping[str, Any]) -> None:
    """Build the shards of `folder` that are not there yet; of several processes one builds, and the others wait."""
    for build in folder_builds(source):
        if not is_finished(build):
            print(f"{len(build.source):,} pictures from {source['folder']} -> {build.folder}", flush=True)
            build_aloud(build, source["num_workers"], wait=True)


def planned_shards(source: Mapping[str, Any]) -> ShardSet:
    """The shards for training that `folder` has or, as long as no picture is found to be bad, will have."""
    build = next(folder_builds(source))
    if is_finished(build):
        return open_shards(build.folder)
    paths = [(build.path(number), stop - start) for number, (start, stop) in enumerate(build.ranges())]
    return ShardSet(tuple(LocatedShard(Shard(path.name, count), path, ("json",)) for path, count in paths))
