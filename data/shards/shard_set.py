"""The shards that a run reads: from the folders, manifests and addresses that a user names to one set."""

import glob
import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from braceexpand import braceexpand

from data.shards.building.finding import content_digest
from data.shards.img2dataset import BELOW, NEW, OF_SHARDS, UNFINISHED, UNLISTED, folders_below, noted_skips, take_stock
from data.shards.index import Kinds
from data.shards.manifest import IMAGE_MEMBERS, MANIFEST, Manifest, Shard, read_manifest
from data.shards.reading.skips import Skip
from data.shards.remote.addresses import SCHEME, STORES, file_address, redacted
from data.shards.remote.fetcher import Fetcher

REPEATED = "shard with the content of another one, also trained on"
_LIST = os.R_OK | os.X_OK  # what a folder must allow
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_local_path = partial(re.compile(r"(?i)^file:(?://(?:localhost)?)?(/(?!/).*)").sub, lambda path: unquote(path[1]))
_JOINT = re.compile(r"::(?![^\[\]]*\])")  # not that of an IPv6 address, which stands in brackets


@dataclass(frozen=True)
class LocatedShard:
    """A shard of the manifest together with where it lies, what its samples must hold and how it was made."""

    shard: Shard
    location: Path | str
    members: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @cached_property
    def label(self) -> str:
        """The location for messages, without what it may hold of passwords."""
        return redacted(self.location)


@dataclass(frozen=True)
class ShardSet:
    """The shards that one run reads, from one place or several."""

    shards: tuple[LocatedShard, ...]
    passed: tuple[Skip, ...] = ()  # what was passed over in their folders
    images: tuple[str, ...] = IMAGE_MEMBERS  # kinds of member that are pictures, in order of preference

    def __post_init__(self) -> None:
        read = {str(Path(row.location).parent) for row in self.shards}  # also folders below others, if both were named
        passed = {skip: None for skip in self.passed if skip.reason != BELOW or skip.name not in read}
        firsts: dict[str, str] = {}  # label by content: a sha256 or, where there is none, size and beginning
        places = {str(row.location): row for row in self.shards}  # an epoch may go through some often
        for row in places.values() if len(self.shards) > 1 else ():
            mark = row.shard.sha256 or (content_digest(row.location) if isinstance(row.location, Path) else row.label)
            if firsts.setdefault(mark, row.label) != row.label and row.shard.samples:
                what = f"`{row.label}` is `{firsts[mark]}` ({row.shard.samples:,} samples)"
                passed[Skip(0, REPEATED, f"{row.label}: {REPEATED}", what, 0)] = None
        object.__setattr__(self, "passed", tuple(passed))

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
    places: str | Path | Sequence[str | Path], fetcher: Fetcher | None = None, needed: Kinds = (IMAGE_MEMBERS,)
) -> ShardSet:
    """Find shards.

    Args:
        places: One or several of: a folder with a `manifest.json`; a folder of tar files without one, such as
            img2dataset's; a folder of such folders; the path of a `manifest.json` or a tar file; an address (https,
            s3, gs, hf) of a folder with one. Several in one text as webdataset and shells write them:
            `{00000..00099}.tar`, `part-*/*.tar`, `a::b`.
        fetcher: Fetches https shards; needed if there are any.
        needed: Kinds of the picture, in order of preference, and of the members that are read beside it.

    Raises:
        FileNotFoundError: A place does not exist or holds no shards.
        ValueError: A place is neither a local path nor such an address, its manifest is unusable, or its build is
            unfinished.
    """
    if isinstance(places, str | Path):
        places = [places]
    expanded = [row for place in places for row in expand_place(place)]
    parts = [_open_place(check_location(folder), names, fetcher, needed) for folder, names in expanded]
    passed = tuple(skip for part in parts for skip in part.passed)
    if not any(sum(part.counts) for part in parts):
        lost = "".join(f" {skip.detail}." for skip in passed)
        raise ValueError(f"No shards were found.{lost} Make some with `python -m data.build`.")
    return ShardSet(tuple(shard for part in parts for shard in part.shards), passed, needed[0])


def expand_place(place: str | Path) -> list[tuple[str | Path, list[str]]]:
    """Folders or addresses that a place stands for, each with the names of the shards that are meant; none: all."""
    parts = [str(place)]
    if not os.path.exists(place):
        parts = [one for part in _JOINT.split(str(place)) for one in braceexpand(_local_path(part), escape=False)]
    pairs = [(folder, MANIFEST) for part in parts for folder in _unlisted(_pattern(part)) if not os.path.exists(place)]
    for path in (path for part in parts for path in sorted(glob.glob(_pattern(part), recursive=True)) or [part]):
        folder, name = os.path.split(path)
        is_file = (name == MANIFEST or name.lower().endswith(".tar")) and not os.path.isdir(path)
        pairs += [(folder, name)] if is_file else [(below, MANIFEST) for below in _folders_with_shards(path)]
    groups = groupby(pairs, key=lambda pair: (pair[0], pair[1] == MANIFEST))
    return [(type(place)(folder), [] if is_all else [name for _, name in rows]) for (folder, is_all), rows in groups]


def _pattern(part: str) -> str:
    """A notation for `glob`, with what is there of its path as it stands: folders may be called `a [1]`."""
    there = part
    while there and not os.path.exists(there):
        there = there.rpartition(os.sep)[0]
    return glob.escape(there) + part[len(there) :]


def _folders_with_shards(place: str) -> list[str]:
    """The place or, if it is a folder without shards, the folders below it that hold some or cannot be listed."""
    if not os.path.isdir(place) or not os.access(place, _LIST) or any(map(OF_SHARDS.search, os.listdir(place))):
        return [place]
    return sorted(map(str, folders_below(Path(place)))) or [place]


def _unlisted(pattern: str) -> Iterator[str]:
    """Folders that a notation would look into, and that cannot be listed; `glob` leaves them out without a word."""
    while glob.has_magic(pattern):
        pattern = os.path.dirname(pattern)
        folders = glob.glob(os.path.join(pattern, ""), recursive=True)  # such as `a/b/`
        yield from (folder[:-1] for folder in folders if not os.access(folder, _LIST))


def is_there(place: str) -> bool:
    """Whether all folders that a place stands for are on this machine."""
    return all(os.path.exists(folder) for folder, _ in expand_place(place))


def _open_place(place: Path | str, only: Collection[str], fetcher: Fetcher | None, needed: Kinds) -> ShardSet:
    """Find the shards of a folder or address: those of these names, or all."""
    passed: list[Skip] = []
    if isinstance(place, Path) and not os.access(place, _LIST):
        return ShardSet((), (Skip(-1, UNLISTED, str(place), f"`{place}`: {UNLISTED}", 0),))
    if isinstance(place, str):
        if fetcher is None:
            raise ValueError(f"`{redacted(place)}` is a URL: give a `cache` folder into which its shards are fetched.")
        manifest = fetcher.manifest(place)
        unknown = sorted(set(only) - {shard.name for shard in manifest.shards})
        passed = [Skip(-1, NEW, name, f"`{redacted(file_address(place, name))}`") for name in unknown]
    elif (place / MANIFEST).exists():
        manifest = read_manifest(place)
        _, passed = take_stock(place, manifest, only, needed)
    elif (place / UNFINISHED).exists():
        raise ValueError(f"`{place}` is an unfinished build. Run its `python -m data.build` command again.")
    else:
        shards, passed = take_stock(place, None, only, needed)
        manifest = Manifest(tuple(shards))
    located = []
    for shard in manifest.shards:
        location = place / shard.name if isinstance(place, Path) else file_address(place, shard.name)
        if not only or shard.name in only:
            located.append(LocatedShard(shard, location, manifest.members, manifest.settings))
            passed += [] if isinstance(location, Path) else noted_skips(manifest, shard.name, located[-1].label)
    return ShardSet(tuple(located), tuple(passed))


def check_location(location: str | Path) -> Path | str:
    """Let only local paths, https URLs and addresses of the stores s3, gs and hf through.

    webdataset would run `pipe:` as a shell command and hand other schemes to other programs, so nothing of that kind
    gets as far as webdataset.

    Returns:
        A `Path`, or the URL as it was given.

    Raises:
        ValueError: The location has any other scheme.
        FileNotFoundError: The local path is no folder.
    """
    text = _local_path(str(location))
    if isinstance(location, str) and _SCHEME.match(text):
        parts = urlsplit(text)
        if parts.scheme.lower() in (SCHEME, *STORES) and parts.hostname:
            return text
        raise ValueError(
            f"`{redacted(text)}` is neither a local path nor an https:// URL, nor of {', '.join(STORES)}; nothing else "
            "is opened. For a file whose name holds a colon, write ./ before it."
        )
    if not Path(text).is_dir():
        raise FileNotFoundError(f"`{text}` does not exist, or is no folder. Make shards with `python -m data.build`.")
    return Path(text)
