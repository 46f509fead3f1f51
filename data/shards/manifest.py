"""What a folder of shards holds: `manifest.json`, and where shards may come from.

The manifest names every shard with its number of samples, size and sha256. It is what lets a reader notice that a
shard is missing, cut off or longer than it should be: tar files themselves end silently.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data.shards.https.addresses import file_address, redacted
from seecoder.weights.atomic import atomic_path

MANIFEST = "manifest.json"
FORMAT, VERSION = "seecoder.shards", 1
MOST_SAMPLES = 10_000_000  # of a shard: 5 GB of tar headers alone; more is a typing error, or an attack on memory
IMAGE_MEMBERS = ("png", "jpg", "jpeg", "webp")  # in order of preference, should a sample hold several

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar")
_KIND = re.compile(r"[A-Za-z0-9_.-]{1,80}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Attributes:
        name: File name, without any folder.
        samples: Samples in it.
        bytes: Size of the file; None where nobody measured it.
        sha256: Hex digest of the file; None where nobody computed it.
    """

    name: str
    samples: int
    bytes: int | None = None
    sha256: str | None = None

    def __post_init__(self):
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(
                f"`name`={self.name!r:.200} is not a shard's name: letters, digits, `_.-` and `.tar` are accepted."
            )
        if type(self.samples) is not int or not 0 <= self.samples <= MOST_SAMPLES:
            raise ValueError(
                f"`samples`={self.samples!r:.50} of shard {self.name} is not a count of at most {MOST_SAMPLES:,}."
            )
        if self.bytes is not None and (type(self.bytes) is not int or self.bytes < 0):
            raise ValueError(f"`bytes`={self.bytes!r:.50} of shard {self.name} is not a size.")
        if self.sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", str(self.sha256)):
            raise ValueError(f"`sha256`={self.sha256!r:.100} of shard {self.name} is not a sha256.")


@dataclass(frozen=True)
class Manifest:
    """Contents of `manifest.json`.

    Attributes:
        shards: The shards, in the order that sample numbers follow.
        members: Kinds of member that every sample has ("json", "png"); a sample without one is incomplete. Empty
            means that only a picture is required.
        settings: How the shards were made.
    """

    shards: tuple[Shard, ...]
    members: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        names = [shard.name for shard in self.shards]
        if len(set(names)) < len(names):
            double = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"Shard {double} is listed twice.")
        odd = [kind for kind in self.members if not isinstance(kind, str) or not _KIND.fullmatch(kind)]
        if odd:
            raise ValueError(f"`members` names {odd[0]!r:.50}: letters, digits and `_.-` are accepted.")

    @property
    def samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    def to_json(self) -> str:
        """Serialise; equal manifests give equal bytes."""
        totals = {
            "shards": len(self.shards),
            "samples": self.samples,
            "bytes": sum(shard.bytes or 0 for shard in self.shards),
        }
        head = {"format": FORMAT, "version": VERSION, "totals": totals, "members": list(self.members)}
        content = head | {"settings": dict(self.settings), "shards": [asdict(shard) for shard in self.shards]}
        return json.dumps(content, indent=1, ensure_ascii=True) + "\n"

    @staticmethod
    def from_json(text: str | bytes, source: str) -> "Manifest":
        """Parse and check.

        Args:
            text: Contents of a `manifest.json`.
            source: Its path, for messages.

        Raises:
            ValueError: It is not a manifest, is of a newer version, or contradicts itself.
        """
        try:
            content = json.loads(text)
            if content["format"] != FORMAT or content["version"] != VERSION:
                raise ValueError(
                    f"format {content['format']!r} version {content['version']!r}, not {FORMAT!r} version {VERSION}"
                )
            shards = tuple(Shard(**shard) for shard in content["shards"])
            manifest = Manifest(shards, _listed(content["members"]), dict(content["settings"]))
            if content["totals"]["samples"] != manifest.samples or content["totals"]["shards"] != len(shards):
                raise ValueError("totals do not match the shards that it lists")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ValueError(
                f"`{source}` is no usable manifest: {reason}. Build it with `python -m data.build`."
            ) from error
        return manifest


def _listed(members: Any) -> tuple[str, ...]:
    if not isinstance(members, list):
        raise ValueError("`members` is not a list")  # a text would be taken for a list of letters
    return tuple(members)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` atomically; it comes last, so that a folder with one is complete."""
    with atomic_path(folder / MANIFEST) as partial:
        partial.write_text(manifest.to_json(), encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read the `manifest.json` of a folder.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is unusable.
    """
    path = folder / MANIFEST
    return Manifest.from_json(path.read_bytes(), str(path))


def check_location(location: str | Path) -> Path | str:
    """Let only local paths and https URLs through.

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
        if urlsplit(text).scheme.lower() == "https" and urlsplit(text).hostname:
            return text
        raise ValueError(
            f"`{redacted(text)}` is neither a local path nor an https:// URL; nothing else is opened. For a file whose "
            "name holds a colon, write ./ before it."
        )
    if not Path(text).exists():
        raise FileNotFoundError(f"`{text}` does not exist. Give a folder of shards, made by `python -m data.build`.")
    return Path(text)


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


def locate(place: Path | str, manifest: Manifest) -> list[LocatedShard]:
    """Join a manifest with the folder or URL that holds its shards."""
    if isinstance(place, Path):
        return [
            LocatedShard(shard, place / shard.name, manifest.members, manifest.settings) for shard in manifest.shards
        ]
    return [
        LocatedShard(shard, file_address(place, shard.name), manifest.members, manifest.settings)
        for shard in manifest.shards
    ]


def join(parts: Sequence[Sequence[LocatedShard]]) -> ShardSet:
    """Lay several places' shards one after the other.

    Raises:
        ValueError: There is not one shard in all of them.
    """
    shards = tuple(shard for part in parts for shard in part)
    if not shards:
        raise ValueError("No shards were found. Make some with `python -m data.build`.")
    return ShardSet(shards)
