"""A folder of pictures or a `datasets` set as training data: built into shards before the first step."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.command import build_aloud
from data.shards.building.claim import is_finished
from data.shards.building.dataset_rows import ImageRow, open_rows
from data.shards.building.finding import find_image_files, printable_name, split_held_out
from data.shards.building.image_files import ImageFiles
from data.shards.building.shard_build import Build
from data.shards.manifest import Shard
from data.shards.shard_set import LocatedShard, ShardSet, open_shards
from train.sources.held_out import listed

_MIN_SHARDS = 64  # if there are as many pictures: each reading process needs a shard of its own


def folder_builds(source: Mapping[str, Any]) -> Iterator[Build]:
    """What is built of `folder` or `dataset`: shards for training and, if there is a place for them, held-out ones.

    Args:
        source: Arguments of `train.sources.shard_data.ShardPictures`.

    Raises:
        ValueError: `shards` or `held_out_shards` are several places, both are given, there are no pictures, or a
            member beside them is asked for.
        OSError: The folder does not exist.
    """
    given, places = is_built(source), [*listed(source["shards"]), *listed(source["held_out_shards"])]
    what = f"`{given}`={source[given]}"
    if source.get("folder") and source.get("dataset"):
        raise ValueError(f"{what} must be left out with `dataset`={source['dataset']}. Leave one of them out.")
    for name in ("reference", "mask"):
        if source.get(name):
            raise ValueError(
                f"`{name}`={source[name]} must be left out with {what}, of which shards of single pictures are built. "
                "Give `shards` that hold both, and no other source."
            )
    if len(listed(source["shards"])) != 1 or len(places) > 2 or "://" in "".join(places):
        raise ValueError(f"{what} must go with one local folder in `shards`, and one in `held_out_shards`.")
    pictures = _files(Path(source["folder"])) if source.get("folder") else _rows(source)
    held_out = max(1, min(source["held_out"], len(pictures) // 10)) if len(places) > 1 and pictures else 0
    for place, numbers in zip(places, split_held_out([path for _, path in pictures], held_out), strict=False):
        own = {"size": source["image_size"], "encode": "jpeg", "quality": 95, "max_pixels": 64_000_000}
        chosen = [pictures[number] for number in numbers]
        files = ImageFiles.from_paths([path for _, path in chosen], [name for name, _ in chosen], **own)
        yield Build(files, Path(place), max(1, min(1000, len(files) // _MIN_SHARDS)), None, source["ceiling"])


def is_built(source: Mapping[str, Any]) -> str:
    """Which argument names the pictures of which a run builds its shards: "folder", "dataset" or none ("")."""
    return next((name for name in ("folder", "dataset") if source.get(name)), "")


def _files(folder: Path) -> list[tuple[str, Path]]:
    paths, notes = find_image_files(folder)
    print(*(f"{note}\n" for note in notes), sep="", end="", flush=True)
    return [(printable_name(path.relative_to(folder)), path) for path in paths]


def _rows(source: Mapping[str, Any]) -> list[tuple[str, ImageRow]]:
    """Rows by names that say of which version of the set they are: shards of another one are not taken for these."""
    row = ImageRow(*(source[name] for name in ("dataset", "dataset_split", "image_column", "dataset_from_hub")))
    rows = open_rows(row)
    label = f"{row.name}@{rows._fingerprint}[{row.split}]"
    return [(f"{label}[{number}]", row._replace(number=number)) for number in range(len(rows))]


def build_folder(source: Mapping[str, Any]) -> None:
    """Build the shards that are not there yet; of several processes one builds, and the others wait."""
    for build in folder_builds(source):
        if not is_finished(build):
            print(f"{len(build.source):,} pictures from {source[is_built(source)]} -> {build.folder}", flush=True)
            build_aloud(build, source["num_workers"], wait=True)


def planned_shards(source: Mapping[str, Any]) -> ShardSet:
    """The shards for training that there are or, as long as no picture is found to be bad, will be."""
    build = next(folder_builds(source))
    if is_finished(build):
        return open_shards(build.folder)
    paths = [(build.path(number), stop - start) for number, (start, stop) in enumerate(build.ranges())]
    return ShardSet(tuple(LocatedShard(Shard(path.name, count), path, ("json",)) for path, count in paths))
