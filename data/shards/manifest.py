"""What a folder of shards holds: `manifest.json`.

The manifest names every shard with its number of samples, size and sha256. It is what lets a reader notice that a
shard is missing, cut off or longer than it should be: tar files themselves end silently.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from seecoder.weights.atomic import write_text

MANIFEST = "manifest.json"
FORMAT, VERSION = "seecoder.shards", 1
MAX_SAMPLES = 10_000_000  # of a shard: 5 GB of tar headers alone; more is a typing error, or an attack on memory
IMAGE_MEMBERS = ("png", "jpg", "jpeg", "webp")  # in order of preference, should a sample hold several

# No folder, no scheme, no pattern of a shell, and nothing that cannot be seen or written down.
_IN_NAME = r"[^\x00-\x1f\x7f/\\:*?\"<>|\u200b-\u200f\u2028-\u202e\ud800-\udfff\ufeff]"
SHARD_NAME = re.compile(rf"(?![\s.]){_IN_NAME}+\.(?i:tar)")
_KIND = re.compile(r"[A-Za-z0-9_.-]{1,80}")


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Attributes:
        name: File name, without any folder.
        samples: Samples in it.
        bytes: Size of the file; None where nobody measured it.
        sha256: Hex digest of the file; None where nobody computed it.
        sizes: Heights and widths of its pictures, as `picture_sizes` packs them; None where nobody measured them.
    """

    name: str
    samples: int
    bytes: int | None = None
    sha256: str | None = None
    sizes: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not SHARD_NAME.fullmatch(self.name):
            raise ValueError(
                f"`name`={self.name!r:.200} is not a shard's name: it must end in `.tar`, without a folder or `:*?`."
            )
        if type(self.samples) is not int or not 0 <= self.samples <= MAX_SAMPLES:
            raise ValueError(
                f"`samples`={self.samples!r:.50} of shard {self.name} is not a count of at most {MAX_SAMPLES:,}."
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

    def __post_init__(self) -> None:
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
            if not isinstance(content["members"], list):  # a text would be taken for a list of letters
                raise ValueError("`members` is not a list")
            manifest = Manifest(shards, tuple(content["members"]), dict(content["settings"]))
            if content["totals"]["samples"] != manifest.samples or content["totals"]["shards"] != len(shards):
                raise ValueError("totals do not match the shards that it lists")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ValueError(
                f"`{source}` is no usable manifest: {reason}. Build it with `python -m data.build`."
            ) from error
        return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` atomically; it comes last, so that a folder with one is complete."""
    write_text(folder / MANIFEST, manifest.to_json())


def read_manifest(folder: Path) -> Manifest:
    """Read the `manifest.json` of a folder.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is unusable.
    """
    path = folder / MANIFEST
    return Manifest.from_json(path.read_bytes(), str(path))
