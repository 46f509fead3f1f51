"""Tiny shards whose pictures say which sample they are."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.shards.manifest import Manifest, write_manifest
from data.shards.writing import write_shard

SIDE = 8


def picture(number: int, side: int = SIDE, encoding: str = "PNG") -> bytes:
    """A picture of one colour, which is the sample's number in base 256 (exact for PNG)."""
    pixels = np.empty((side, side, 3), dtype=np.uint8)
    pixels[:] = (number % 256, number // 256, 77)
    with io.BytesIO() as stream:
        Image.fromarray(pixels).save(stream, encoding)
        return stream.getvalue()


def samples(start: int, count: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    for number in range(start, start + count):
        yield f"{number:06d}", {"png": picture(number), "json": json.dumps({"number": number}).encode()}


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., Path]:
    """Write shards with the given numbers of samples and their manifest; sample ids are numbers in the pictures."""

    def make(counts: Sequence[int], name: str = "shards") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        starts = np.cumsum([0, *counts]).tolist()
        shards = [
            write_shard(folder / f"{number:05d}.tar", samples(starts[number], count))
            for number, count in enumerate(counts)
        ]
        write_manifest(folder, Manifest(tuple(shards), ("json", "png")))
        return folder

    return make


@pytest.fixture
def make_picture() -> Callable[..., bytes]:
    """Bytes of a picture that shows a number."""
    return picture
