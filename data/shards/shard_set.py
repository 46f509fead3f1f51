"""The shards that a run reads: from the folders, manifests and addresses that a user names to one set."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from data.shards.https.addresses import SCHEME, STORES, file_address, folder_address, redacted
from data.shards.https.fetcher import Fetcher
from data.shards.img2dataset import take_stock
from data.shards.manifest import IMAGE_MEMBERS, MANIFEST, Manifest, Shard, read_manifest
from data.shards.reading.skips import Skip

UNFINISHED = "build.json"  # lies in the folder of a build until its manifest is written

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


@dataclass(frozen=True)
class LocatedShard:
    """A shard of the manifest together with where it lies, what its samples must hold and how it was made."""

    shard: Shard
    location: Path | str
    members: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def label(self) -> str:
        """The location for messages, without what it may hold of passwords."""
        return redacted(self.location)


@dataclass(frozen=True)
class ShardSet:
    """The shards that one run reads, from one place or several."""

    shards: tuple[LocatedShard, ...]
    passed: tuple[Skip, ...] = ()  # what was passed over in their folders
    images: tuple[str, ...] = IMAGE_MEMBERS  # kinds of member that are pictures, in order of preference

    @property
    def counts(self) -> list[int]:
        """Samples of each shard."""
        return [located.shard.samples for located in self.shards]

    @property
    def fingerprint(self) -> str:
        """Digest of what the shards hold, wherever they lie: data that were moved keep their cursor."""
        rows = [(row.shard.name, row.shard.samples, row.shard.sha256) for row in self.shards]
        return hashlib.sha256(repr(rows).encode()).hexdigest()

    @property
    def is_hashed(self) -> bool:
        """Whether the fingerprint is one of bytes: shards without a manifest have names and counts alone."""
        return bool(self.shards) and all(row.shard.sha256 for row in self.shards)


def open_shards(
    places: str | Path | Sequence[str | Path], fetcher: Fetcher | None = None, images: tuple[str, ...] = IMAGE_MEMBERS
) -> ShardSet:
    """Find shards.

    Args:
        places: One or several of: a folder with a `manifest.json`; a folder of tar files without one, such as
            img2dataset's; the path of a `manifest.json`; an address (https, s3, gs, hf) of a folder with one.
        fetcher: Fetches https shards; needed if there are any.
        images: Kinds of member that are pictures, in order of preference.

    Raises:
        FileNotFoundError: A place does not exist or holds no shards.
        ValueError: A place is neither a local path nor such an address, its manifest is unusable, or its build is
            unfinished.
    """
    if isinstance(places, str | Path):
        places = [places]
    parts = [_open_place(check_location(place), fetcher) for place in places]
    passed = tuple(skip for part in parts for skip in part.passed)
    if not any(sum(part.counts) for part in parts):
        lost = "".join(f" {skip.detail}." for skip in passed)
        raise ValueError(f"No shards were found.{lost} Make some with `python -m data.build`.")
    return ShardSet(tuple(shard for part in parts for shard in part.shards), passed, images)


def _open_place(place: Path | str, fetcher: Fetcher | None) -> ShardSet:
    if isinstance(place, str):
        if fetcher is None:
            raise ValueError(f"`{redacted(place)}` is a URL: give a `cache` folder into which its shards are fetched.")
        return _locate(folder_address(place, MANIFEST), fetcher.manifest(place))
    if place.is_file():
        if place.name != MANIFEST:
            raise ValueError(f"`{place}` is a file. Give its folder, or a {MANIFEST}.")
        place = place.parent
    if (place / MANIFEST).exists():
        manifest = read_manifest(place)
        return _locate(place, manifest, take_stock(place, manifest)[1])
    if (place / UNFINISHED).exists():
        raise ValueError(
            f"`{place}` is an unfinished build. Run its `python -m data.build` command again to finish it."
        )
    shards, passed = take_stock(place)
    return _locate(place, Manifest(tuple(shards)), passed)


def _locate(place: Path | str, manifest: Manifest, passed: Sequence[Skip] = ()) -> ShardSet:
    """Join a manifest with the folder or URL that holds its shards."""
    located = (
        LocatedShard(
            shard,
            place / shard.name if isinstance(place, Path) else file_address(place, shard.name),
            manifest.members,
            manifest.settings,
        )
        for shard in manifest.shards
    )
    return ShardSet(tuple(located), tuple(passed))


def check_location(location: str | Path) -> Path | str:
    """Let only local paths, https URLs and addresses of the stores s3, gs and hf through.

    webdataset would run `pipe:` as a shell command and hand other schemes to other programs, so nothing of that kind
    gets as far as webdataset.

    Returns:
        A `Path`, or the URL as it was given.

    Raises:
        ValueError: The location has any other scheme.
        FileNotFoundError: The local path does not exist.
    """
    text = str(location)
    if isinstance(location, str) and _SCHEME.match(text):
        parts = urlsplit(text)
        if parts.scheme.lower() == "file" and parts.netloc in ("", "localhost"):
            return check_location(Path(unquote(parts.path)))
        if parts.scheme.lower() in (SCHEME, *STORES) and parts.hostname:
            return text
        raise ValueError(
            f"`{redacted(text)}` is neither a local path nor an https:// URL, nor of {', '.join(STORES)}; nothing else "
            "is opened. For a file whose name holds a colon, write ./ before it."
        )
    if not Path(text).exists():
        way = "no pattern, but the folder, or a list of folders," if re.search(r"[{*?[]|::", text) else "a folder"
        raise FileNotFoundError(f"`{text}` does not exist. Give {way} of shards, made by `python -m data.build`.")
    return Path(text)
