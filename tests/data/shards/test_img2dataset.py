"""img2dataset's folders are read as they are, and can be given a manifest."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data.shards.img2dataset import make_manifest, take_stock
from data.shards.index import index_path, read_headers
from data.shards.manifest import read_manifest
from data.shards.reading.shard_loader import ShardLoader
from data.shards.reading.square_image import SquareImage
from data.shards.shard_set import open_shards
from tests.fixtures.shards import AttributedSquare


@pytest.fixture
def folder(tmp_path: Path, make_picture: Callable[..., bytes]) -> Path:
    """Two shards as img2dataset lays them out: members in its order, some captions, statistics and parquet beside."""
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard:05d}.tar", "w") as tar:
            for row in range(4):
                key = f"{shard:05d}{row:04d}"
                members = {"jpg": make_picture(10 * shard + row, 16, "JPEG"), "json": json.dumps({"key": key}).encode()}
                if row % 2:
                    members["txt"] = b"a caption"
                for kind, content in members.items():
                    info = tarfile.TarInfo(f"{key}.{kind}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        (tmp_path / f"{shard:05d}_stats.json").write_text(json.dumps({"count": 6, "successes": 4}))
        (tmp_path / f"{shard:05d}.parquet").write_bytes(b"not needed")
    return tmp_path


def keys(folder: Path) -> list[str]:
    transform = AttributedSquare(16)
    loader = ShardLoader(folder, transform, 3, rank=0, world_size=1, shuffle=False, endless=False, ceiling=1.0)
    rows = [
        (row["key"], valid) for batch in loader for row, valid in zip(batch["attributes"], batch["valid"], strict=True)
    ]
    return [key for key, valid in rows if valid]


EXPECTED = [f"{shard:05d}{row:04d}" for shard in range(2) for row in range(4)]


def test_it_is_read_as_it_is(folder: Path):
    before = sorted(folder.iterdir())
    assert keys(folder) == EXPECTED
    assert sorted(folder.iterdir()) == before, "reading writes nothing"


def test_statistics_tell_what_a_cut_shard_lost(folder: Path):
    offset, _ = read_headers(folder / "00000.tar").samples[2][1]["jpg"]
    os.truncate(folder / "00000.tar", offset + 10)
    assert sum(shard.samples for shard in take_stock(folder)[0]) == 8
    loader = ShardLoader(folder, SquareImage(16), 2, rank=0, world_size=1, shuffle=False, endless=False, ceiling=1.0)
    for _ in loader:
        pass
    assert loader.skips.counts == {"truncated shard": 2}
    assert list(loader.skips.names) == [str(folder / "00000.tar")]


@pytest.mark.parametrize(
    "stats",
    [
        None,
        "{",
        "[]",
        '{"successes": "4"}',
        '{"successes": -1}',
        '{"successes": true}',
        '{"successes": 2147483648}',
        '{"successes": 1e30}',
        '{"successes": 4.0}',
    ],
)
def test_without_usable_statistics_headers_are_counted(folder: Path, stats: str | None):
    (folder / "00000_stats.json").unlink()
    if stats is not None:
        (folder / "00000_stats.json").write_text(stats)
    assert [shard.samples for shard in take_stock(folder)[0]] == [4, 4]


def test_a_manifest_can_be_made(folder: Path):
    manifest, passed = make_manifest(folder)
    assert not passed
    assert read_manifest(folder) == manifest
    assert open_shards(folder).counts == [4, 4]
    assert all(index_path(folder / shard.name).exists() for shard in manifest.shards)
    assert keys(folder) == EXPECTED
    with pytest.raises(FileExistsError, match="exists already"):
        make_manifest(folder)


def test_a_manifest_does_not_bless_damage(folder: Path):
    os.truncate(folder / "00001.tar", 3000)
    with pytest.raises(ValueError, match=r"00001\.tar`: truncated shard \(\d of 4 samples\)"):
        make_manifest(folder)
    assert not (folder / "manifest.json").exists()
