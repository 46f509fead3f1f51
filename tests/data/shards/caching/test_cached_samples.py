"""Copies of shards with extras beside the pictures."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from data.shards.building.shard_build import Build
from data.shards.caching.cached_samples import LOST, NOT_FINITE, CachedSamples
from data.shards.reading.square_image import SquareImage
from data.shards.shard_set import open_shards


class FirstValue:
    """An extra: the first value of every picture; none for odd ones."""

    source = SimpleNamespace(member=lambda: "first")
    settings: dict[str, Any] = {"first": {"odd": False}}  # noqa: RUF012

    def __call__(self, pixels: Tensor) -> list[bytes | None]:
        values = pixels[:, 0, 0, 0].tolist()
        return [None if value % 2 else str(value).encode() for value in values]


def cached(folder: Path, **settings: int) -> CachedSamples:
    extras: Any = (FirstValue(),)
    return CachedSamples(open_shards(folder), SquareImage(8), extras, **settings)


def test_samples_are_copied_with_their_extras(make_shards: Callable[..., Path]):
    items = list(cached(make_shards([3, 4]), batch_size=2).samples(3, 7))
    assert [item.name for item in items] == [f"00001.tar[{number}]" for number in range(4)]
    assert [item.members.get("first") for item in items] == [None, b"4", None, b"6"]
    assert [item.reason for item in items] == [NOT_FINITE, "", NOT_FINITE, ""]
    assert all({"png", "json"} <= set(item.members) for item in items)


def test_a_lost_sample_keeps_its_place(make_shards: Callable[..., Path]):
    folder = make_shards([2])
    (folder / "00000.tar").unlink()
    items = list(cached(folder).samples(0, 2))
    assert [dict(item.members) for item in items] == [{LOST: b"missing shard"}] * 2
    assert [item.reason for item in items] == ["missing shard"] * 2


def test_a_part_lies_in_one_shard(make_shards: Callable[..., Path]):
    with pytest.raises(ValueError, match="samples of more than one shard"):
        list(cached(make_shards([3, 4])).samples(2, 4))


def test_a_build_has_the_shards_of_the_original(make_shards: Callable[..., Path], tmp_path: Path):
    source = cached(make_shards([3, 4]))
    build = Build(source, tmp_path / "out", originals=source.shards.shards)
    assert build.ranges() == [(0, 3), (3, 7)]
    assert [build.path(number).name for number in (0, 1)] == ["00000.tar", "00001.tar"]
    assert build.settings["first"] == {"odd": False}


@pytest.mark.parametrize("name", ["batch_size", "threads"])
def test_numbers_below_one_are_refused(name: str, make_shards: Callable[..., Path]):
    with pytest.raises(ValueError, match=f"`{name}`=0 of CachedSamples"):
        cached(make_shards([1]), **{name: 0})
