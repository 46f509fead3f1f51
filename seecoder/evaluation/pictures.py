"""The pictures of an evaluation, of a folder or of shards, and which of them belong together."""

import tarfile
from collections.abc import Sequence
from pathlib import Path

from seecoder.images.gate import is_image_file
from seecoder.images.saving import VARIATION, safe_name, without_variations


def find_pictures(place: Path, scratch: Path, *, made: bool = True) -> list[Path]:
    """Find pictures by content, sorted by name; nothing is decoded.

    Args:
        place: A folder of pictures (where `seecoder vary` wrote, only its results are taken), a shard, or a folder of
            shards.
        scratch: A folder into which shards are unpacked.
        made: Whether results are looked for, or what they were made from.

    Raises:
        FileNotFoundError: There are no pictures.
        ValueError: A shard is damaged.
    """
    shards = sorted(place.glob("*.tar")) if place.is_dir() else [place]
    for shard in shards:
        try:
            with tarfile.open(shard, "r:") as tar:
                tar.extractall(scratch / shard.stem, filter="data")
        except (tarfile.TarError, OSError) as error:
            raise ValueError(f"`{shard}` must be a folder, or a shard (tar file) that is whole: {error}.") from error
    found = sorted(path for path in (scratch.rglob("*") if shards else place.iterdir()) if is_image_file(path))
    if not made:
        found = without_variations(found)
    elif (place / "settings.json").is_file():  # beside a sheet and previews
        found = [path for path in found if VARIATION.fullmatch(path.stem)] or found
    if not found:
        raise FileNotFoundError(f"`{place}` has no pictures; give a folder of pictures, a shard or a folder of shards.")
    return found


def match(generated: Sequence[Path], reference: Sequence[Path]) -> dict[Path, Path]:
    """Find what generated pictures were made from, by name; what has no input, or several, is left out.

    All variations that `seecoder vary` made of an input belong to it; any other picture belongs to the one of the same
    name, whatever the endings.
    """
    known: dict[str, list[Path]] = {}
    for path in reference:
        for name in {path.stem, safe_name(path.stem)}:
            known.setdefault(name, []).append(path)
    pairs = {}
    for path in generated:
        variation = VARIATION.fullmatch(path.stem)
        found = known.get(path.stem) or known.get(variation[1] if variation else "", [])
        if len(found) == 1:
            pairs[path] = found[0]
    return pairs
