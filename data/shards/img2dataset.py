"""Folders of tar files without a manifest, first of all those that img2dataset writes.

img2dataset writes `00000.tar`, `00000_stats.json` and `00000.parquet` for each shard, with members `KEY.jpg`,
`KEY.json` and, where there is a caption, `KEY.txt`. All of it is read as it is; only the picture is required, and the
parquet file is not needed.
"""

import json
import logging
from pathlib import Path

from tqdm import tqdm

from data.shards.index import read_headers, write_index
from data.shards.manifest import MANIFEST, MAX_SAMPLES, Manifest, Shard, write_manifest
from seecoder.weights.digests import file_sha256

logger = logging.getLogger(__name__)

_WORTH_A_BAR = 20  # shards whose headers take noticeable time to read


def count_samples(folder: Path) -> Manifest:
    """Count the samples of a folder's tar files.

    The count comes from `NAME_stats.json` ("successes") where img2dataset left one, so that a shard that was cut off
    later is noticed; from the tar file's headers otherwise.

    Raises:
        FileNotFoundError: The folder has no tar files.
    """
    paths = sorted(path for path in folder.glob("*.tar") if path.is_file())
    if not paths:
        raise FileNotFoundError(f"`{folder}` holds no .tar files. Make shards with `python -m data.build`.")
    counted = {path: _successes(path) for path in paths}
    unknown = [path for path, count in counted.items() if count is None]
    if len(unknown) >= _WORTH_A_BAR:
        logger.warning(
            "`%s` has no manifest: reading the headers of %d tar files. `python -m data.build index %s` keeps them.",
            *(folder, len(unknown), folder),
        )
    bar = tqdm(unknown, desc="reading headers", unit="shard", disable=len(unknown) < _WORTH_A_BAR)
    counted |= {path: len(read_headers(path).samples) for path in bar}
    return Manifest(tuple(Shard(path.name, counted[path] or 0) for path in paths))


def _successes(shard: Path) -> int | None:
    """Samples that img2dataset says it wrote into a shard."""
    try:
        count = json.loads(shard.with_name(shard.stem + "_stats.json").read_bytes())["successes"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return count if type(count) is int and 0 <= count <= MAX_SAMPLES else None


def make_manifest(folder: Path) -> Manifest:
    """Measure every tar file of a folder and write `manifest.json` and the indices beside them.

    Shards that are damaged, or shorter than img2dataset says, are refused: what a manifest states becomes the truth
    that later losses are measured against.

    Raises:
        FileNotFoundError: The folder has no tar files.
        FileExistsError: It has a manifest already.
        ValueError: A shard is damaged.
    """
    if (folder / MANIFEST).exists():
        raise FileExistsError(f"`{folder / MANIFEST}` exists already. Remove it first if the shards have changed.")
    promised = {shard.name: shard.samples for shard in count_samples(folder).shards}
    shards = []
    for name in tqdm(sorted(promised), desc="indexing", unit="shard"):
        path = folder / name
        index = read_headers(path)
        fault = index.fault or (len(index.samples) < promised[name] and "short shard")
        if fault:
            raise ValueError(
                f"`{path}`: {fault} ({len(index.samples)} of {promised[name]} samples). Make or fetch it again, or "
                "move it away."
            )
        sha256 = file_sha256(path)
        write_index(path, index, sha256)
        shards.append(Shard(name, len(index.samples), path.stat().st_size, sha256))
    manifest = Manifest(tuple(shards), settings={"kind": "index"})
    write_manifest(folder, manifest)
    return manifest
