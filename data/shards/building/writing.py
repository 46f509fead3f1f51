"""Write one shard: webdataset's tar layout, the same bytes for the same samples, and never half a file."""

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from webdataset.writer import TarWriter

from data.shards.index import ShardIndex, read_headers, write_index
from data.shards.manifest import Shard
from seecoder.weights.atomic import atomic_path
from seecoder.weights.digests import file_sha256

_NOTHING = hashlib.sha256(b"").hexdigest()


def write_shard(
    path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]], notes: dict[str, Any] | None = None
) -> Shard:
    """Write a shard and the index beside it, the index last: a shard with a matching index is finished.

    No tar file is written if there are no samples, only the index that says so.

    Args:
        path: Where the shard shall be; it appears there whole or not at all.
        samples: Key and members (bytes by extension) of each sample, in order.
        notes: Kept in the index; read after the last sample was taken, so that `samples` may still fill it.

    Returns:
        The shard's entry for a manifest.
    """
    remaining = iter(samples)
    first = next(remaining, None)
    if first is None:
        path.unlink(missing_ok=True)
        write_index(path, ShardIndex([]), _NOTHING, notes)
        return Shard(path.name, 0, 0, _NOTHING)
    # Fixed times and owners: equal samples give equal bytes, whoever writes them and when.
    fixed: dict[str, Any] = {"mtime": 0, "user": "seecoder", "group": "seecoder", "mode": 0o444}
    with atomic_path(path) as partial, partial.open("wb") as file, TarWriter(file, encoder=False, **fixed) as writer:
        for key, members in itertools.chain([first], remaining):
            writer.write({"__key__": key, **members})
    sha256, index = file_sha256(path), read_headers(path)
    write_index(path, index, sha256, notes)
    return Shard(path.name, len(index.samples), path.stat().st_size, sha256)
