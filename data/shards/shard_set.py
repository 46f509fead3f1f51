"""From what a user names (folders, manifests, https URLs) to a set of shards."""

from collections.abc import Sequence
from pathlib import Path

from data.shards.https.addresses import folder_address, redacted
from data.shards.https.fetcher import Fetcher
from data.shards.img2dataset import count_samples
from data.shards.manifest import MANIFEST, LocatedShard, ShardSet, check_location, join, locate, read_manifest

UNFINISHED = "build.json"  # lies in the folder of a build until its manifest is written


def open_shards(places: str | Path | Sequence[str | Path], fetcher: Fetcher | None = None) -> ShardSet:
    """Find shards.

    Args:
        places: One or several of: a folder with a `manifest.json`; a folder of tar files without one, such as
            img2dataset's; the path of a `manifest.json`; an https URL of a folder with a `manifest.json`.
        fetcher: Fetches https shards; needed if there are any.

    Raises:
        FileNotFoundError: A place does not exist or holds no shards.
        ValueError: A place is neither a local path nor an https URL, its manifest is unusable, or its build is
            unfinished.
    """
    if isinstance(places, str | Path):
        places = [places]
    return join([_shards_of(check_location(place), fetcher) for place in places])


def _shards_of(place: Path | str, fetcher: Fetcher | None) -> list[LocatedShard]:
    if isinstance(place, str):
        if fetcher is None:
            raise ValueError(f"`{redacted(place)}` is a URL: give a `cache` folder into which its shards are fetched.")
        return locate(folder_address(place, MANIFEST), fetcher.manifest(place))
    if place.is_file():
        if place.name != MANIFEST:
            raise ValueError(f"`{place}` is a file. Give its folder, or a {MANIFEST}.")
        place = place.parent
    if (place / MANIFEST).exists():
        return locate(place, read_manifest(place))
    if (place / UNFINISHED).exists():
        raise ValueError(
            f"`{place}` is an unfinished build. Run its `python -m data.build` command again to finish it."
        )
    return locate(place, count_samples(place))
