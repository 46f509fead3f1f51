"""A plain folder of pictures: built once, reused by content, planned without being built."""

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest

from data.shards.building.dataset_rows import open_rows
from data.shards.manifest import read_manifest
from data.shards.reading.shard_reader import ShardReader
from data.shards.shard_set import open_shards
from tests.fixtures.shards import file_digests, save_image
from train.sources.folder import build_folder, folder_builds, planned_shards
from train.sources.planned_data import held_out_lines, open_if_there
from train.sources.shard_data import ShardPictures


@pytest.fixture
def source(tmp_path: Path) -> dict[str, Any]:
    """Arguments of a data source over twenty-two pictures, two of which are the same."""
    for number in range(22):
        save_image(tmp_path / "pictures" / f"{number % 3}" / f"{number}.png", 24, 40, seed=min(number, 20))
    own = {"folder": str(tmp_path / "pictures"), "shards": str(tmp_path / "shards"), "held_out_shards": None}
    return own | {"held_out": 64, "image_size": 16, "ceiling": 0.01, "num_workers": 0, "held_out_world": False}


def images(folder: str | Path) -> set[bytes]:
    shards = open_shards(folder)
    reader = ShardReader(shards)
    rows = [reader.read(shard, number) for shard, count in enumerate(shards.counts) for number in range(count)]
    return {content for row in rows for content in row.values()}


def test_a_source_builds_its_shards_and_the_next_one_takes_them(source: dict[str, Any], capsys: Any):
    options = {name: source[name] for name in ("folder", "shards", "image_size")}
    data = ShardPictures(4, **options)
    assert "done: 22 samples in 22 shards" in capsys.readouterr().out
    assert data.places == [source["shards"]]
    before = file_digests(Path(source["shards"]))
    ShardPictures(4, **options)
    assert capsys.readouterr().out == ""
    assert file_digests(Path(source["shards"])) == before
    assert read_manifest(Path(source["shards"])).settings["size"] == 16


def test_an_unfinished_build_is_finished(source: dict[str, Any], capsys: Any):
    build_folder(source)
    whole = file_digests(Path(source["shards"]))
    (Path(source["shards"]) / "manifest.json").unlink()
    for path in Path(source["shards"]).glob("0000[0-4].*"):
        path.unlink()
    (build,) = folder_builds(source)
    (build.folder / "build.json").write_text("{}")
    with pytest.raises(FileExistsError, match="holds another build"):
        build_folder(source)
    (build.folder / "build.json").write_text(json.dumps(build.settings))
    build_folder(source)
    assert "17 of them from an earlier run" in capsys.readouterr().out
    assert file_digests(Path(source["shards"])) == whole


@pytest.mark.parametrize("change", [{"image_size": 8}, {}])
def test_other_pictures_or_sizes_are_not_taken_for_these(source: dict[str, Any], change: dict[str, Any]):
    build_folder(source)
    if not change:
        save_image(Path(source["folder"]) / "0" / "0.png", 24, 40, seed=99)
    for use in (build_folder, planned_shards):
        with pytest.raises(FileExistsError, match=r"holds another build \((size|sources_sha256): "):
            use(source | change)


def test_a_tenth_is_held_out_and_never_trained_on(source: dict[str, Any], tmp_path: Path):
    source["held_out_shards"] = str(tmp_path / "held_out")
    build_folder(source)
    training, held_out = images(source["shards"]), images(source["held_out_shards"])
    assert len(training | held_out) == 21, "of the two that are equal both lie on one side"
    assert not training & held_out
    assert len(held_out) == 2
    (line,) = held_out_lines("train.sources.ShardPictures", source | {"window": 8})
    assert line == f"held out 2 samples of {source['held_out_shards']}", "not the 64 that were wished for"
    count = sum(sum(open_shards(source[name]).counts) for name in ("shards", "held_out_shards"))
    assert count == 22


def test_of_a_handful_one_is_held_out(source: dict[str, Any], tmp_path: Path):
    for number in range(3):
        save_image(tmp_path / "few" / f"{number}.png", seed=number)
    few = source | {"folder": str(tmp_path / "few"), "held_out_shards": str(tmp_path / "held_out")}
    build_folder(few)
    assert [sum(open_shards(few[name]).counts) for name in ("shards", "held_out_shards")] == [2, 1]
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="There is nothing to build from"):
        build_folder(few | {"folder": str(tmp_path / "none"), "shards": str(tmp_path / "other")})


def test_a_plan_knows_the_shards_before_they_are_built(source: dict[str, Any], tmp_path: Path):
    planned = open_if_there(source)
    assert planned is not None
    assert not Path(source["shards"]).exists()
    build_folder(source)
    built = open_if_there(source)
    assert built is not None
    assert built.is_hashed
    assert planned.counts == built.counts
    assert [row.location for row in planned.shards] == [row.location for row in built.shards]
    (line,) = held_out_lines(
        "train.sources.ShardPictures", source | {"held_out_shards": str(tmp_path / "later"), "window": 8}
    )
    assert "later not built yet, and `fit` will build it" in line


def test_bad_pictures_are_counted_against_the_ceiling(source: dict[str, Any]):
    (Path(source["folder"]) / "bad.jpg").write_bytes(b"rubbish")
    with pytest.raises(RuntimeError, match="1 of 23 sources are bad"):
        build_folder(source)
    build_folder(source | {"ceiling": 0.1})
    assert "bad.jpg" in (Path(source["shards"]) / "bad.jsonl").read_text()


@pytest.mark.parametrize("places", [["a", "b"], "https://host/shards"])
def test_shards_are_built_in_one_local_folder(source: dict[str, Any], places: Any):
    with pytest.raises(ValueError, match="must go with one local folder in `shards`"):
        build_folder(source | {"shards": places})


@pytest.fixture
def rows(source: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Arguments of a data source over the same pictures in a `datasets` set."""
    files = sorted(Path(source["folder"]).rglob("*.png"))
    images = [{"bytes": path.read_bytes(), "path": None} for path in files]
    datasets.Dataset.from_dict({"img": images}).save_to_disk(tmp_path / "set")
    own = {"dataset": str(tmp_path / "set"), "dataset_split": "train", "image_column": "img", "dataset_from_hub": False}
    return source | own | {"folder": None, "shards": str(tmp_path / "of_set")}


def test_a_datasets_set_trains_and_is_planned_as_a_folder_of_its_pictures_is(
    source: dict[str, Any], rows: dict[str, Any], tmp_path: Path, capsys: Any
):
    rows["held_out_shards"] = str(tmp_path / "of_set_held_out")
    source["held_out_shards"] = str(tmp_path / "held_out")
    planned = open_if_there(rows)
    for one in (source, rows):
        build_folder(one)
        build_folder(one)
    assert capsys.readouterr().out.count("done: ") == 4, "what is there is taken"
    for name in ("shards", "held_out_shards"):
        assert images(rows[name]) == images(source[name])
    built = open_if_there(rows)
    assert planned is not None
    assert built is not None
    assert planned.counts == built.counts
    names = ("dataset", "image_column", "shards", "held_out_shards", "image_size")
    assert ShardPictures(4, **{name: rows[name] for name in names}).places == [rows["shards"]]


def test_another_version_of_a_set_is_not_taken_for_the_first(rows: dict[str, Any], tmp_path: Path):
    build_folder(rows)
    changed = datasets.load_from_disk(rows["dataset"]).select(range(1, 22))
    changed.save_to_disk(tmp_path / "changed")
    shutil.rmtree(rows["dataset"])
    (tmp_path / "changed").rename(rows["dataset"])
    open_rows.cache_clear()
    with pytest.raises(FileExistsError, match="holds another build"):
        build_folder(rows)


def test_bad_rows_count_against_the_ceiling(rows: dict[str, Any], tmp_path: Path):
    images = [{"bytes": b"rubbish", "path": None}, None, *datasets.load_from_disk(rows["dataset"])["img"]]
    datasets.Dataset.from_dict({"img": images}).save_to_disk(tmp_path / "bad")
    rows["dataset"] = str(tmp_path / "bad")
    with pytest.raises(RuntimeError, match="2 of 24 sources are bad"):
        build_folder(rows)
    build_folder(rows | {"ceiling": 0.1})
    assert "[train][0]" in (Path(rows["shards"]) / "bad.jsonl").read_text()


def test_a_folder_and_a_set_at_once_are_refused(source: dict[str, Any]):
    with pytest.raises(ValueError, match="must be left out with `dataset`=cats"):
        build_folder(source | {"dataset": "cats"})


@pytest.mark.parametrize("member", ["reference", "mask"])
def test_members_beside_the_pictures_are_refused_before_anything_is_built(
    source: dict[str, Any], tmp_path: Path, member: str
):
    with pytest.raises(ValueError, match=f"`{member}`=beside must be left out with `folder`="):
        build_folder({**source, member: "beside"})
    assert not Path(source["shards"]).exists()
