"""Height and width of every picture, kept in the manifest: what sorts pictures by shape need not open them.

The sizes of a shard are pairs of uint32 in the order of its samples, compressed, in base 64. A picture that cannot be
used has the size 0 x 0.
"""

import base64
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.shards.index import ShardIndex
from data.shards.manifest import IMAGE_MEMBERS, Shard
from seecoder.images.gate import MAX_PIXELS, open_image
from seecoder.images.header import orientation_from_exif
from seecoder.images.masks import load_mask


def measure_pictures(path: Path, index: ShardIndex, prefix: str = "") -> str:
    """Read the headers of all pictures of a tar file, whose samples lie where the index says: `Shard.sizes`.

    With a prefix, such as "mask.", they are those of the pictures beside them, `000.mask.png`. A mask that is black
    all over cannot be used.
    """
    kinds = [prefix + kind for kind in IMAGE_MEMBERS]
    sizes = np.zeros((len(index.samples), 2), np.uint32)
    if len(sizes):
        with path.open("rb") as file:
            for row, (_, places) in enumerate(index.samples):
                offset, length = next((places[kind] for kind in kinds if kind in places), (0, 0))
                file.seek(offset)
                sizes[row] = _upright_size(file.read(length), "mask" in prefix)
    return base64.b64encode(zlib.compress(sizes.astype("<u4").tobytes(), 9)).decode()


def _upright_size(content: bytes, is_mask: bool) -> tuple[int, int]:
    try:
        image = open_image(content, MAX_PIXELS)
        is_plain = 20 * len(content) < image.width * image.height  # only such a small file is worth decoding
        if is_mask and is_plain and not load_mask(content, may_be_black=True, may_be_white=True).any():
            return 0, 0
    except Exception:  # decoders raise whatever their authors did not think of; the loader will say what it is
        return 0, 0
    exif = image.info.get("exif")
    is_turned = isinstance(exif, bytes) and orientation_from_exif(exif) >= 5
    return (image.width, image.height) if is_turned else (image.height, image.width)


def picture_sizes(shard: Shard) -> NDArray[np.uint32]:
    """Heights and widths of a shard's pictures: (samples, 2).

    Raises:
        ValueError: The manifest has none, or they are damaged.
    """
    expected = 8 * shard.samples
    try:
        content = zlib.decompressobj().decompress(base64.b64decode(shard.sizes or ""), expected + 1)
    except (TypeError, ValueError, zlib.error):
        content = b""
    if len(content) != expected:
        raise ValueError(
            f"`sizes` of shard {shard.name} do not exist, or are not those of {shard.samples:,} pictures. Run "
            "`python -m data.build index FOLDER`, which adds them to its manifest."
        )
    return np.frombuffer(content, "<u4").reshape(-1, 2)


def all_sizes(shards: Iterable[Shard]) -> NDArray[np.uint32]:
    """Heights and widths of the pictures of several shards, in their order: (samples, 2).

    Raises:
        ValueError: A manifest has none, or they are damaged.
    """
    return np.concatenate([picture_sizes(shard) for shard in shards])
