"""Rows of `datasets` sets: files of pictures that nobody but our gate decodes, and nothing comes from the network."""

import pickle
from pathlib import Path
from typing import Any

import datasets
import pytest

from data.shards.building import dataset_rows
from data.shards.building.dataset_rows import ImageRow, open_rows
from data.shards.building.finding import split_held_out
from data.shards.building.image_files import ImageFiles
from tests.fixtures.shards import save_image


def make_set(folder: Path, count: int = 3, **columns: list[Any]) -> datasets.Dataset:
    """Pictures, of which the first is named by its path alone, and an empty row."""
    paths = [save_image(folder / f"{number}.png", 24, 40, seed=number) for number in range(count)]
    images = [{"bytes": None, "path": str(paths[0])}]
    images += [{"bytes": path.read_bytes(), "path": None} for path in paths[1:]] + [None]
    return datasets.Dataset.from_dict({"image": images, **columns}).cast_column("image", datasets.Image(decode=False))


@pytest.fixture(autouse=True)
def _no_cached_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    open_rows.cache_clear()


@pytest.mark.parametrize("kind", ["set", "sets", "parquet"])
def test_rows_are_the_bytes_of_files(tmp_path: Path, kind: str):
    place, made = tmp_path / "place", make_set(tmp_path / "in")
    if kind == "parquet":
        place.mkdir()
        made.to_parquet(place / "train-00000-of-00001.parquet")
        made.select([1]).to_parquet(place / "test-00000-of-00001.parquet")
        (place / "README.md").write_text(
            "---\nconfigs:\n- config_name: default\n  data_files: https://host/a.parquet\n---\n"
        )
    else:
        (datasets.DatasetDict({"train": made}) if kind == "sets" else made).save_to_disk(place)
    row = ImageRow(str(place))
    assert len(open_rows(row)) == 4
    content = [(tmp_path / "in" / f"{number}.png").read_bytes() for number in range(3)] + [b""]
    rows = [pickle.loads(pickle.dumps(row._replace(number=number))) for number in range(4)]
    assert [one.read_bytes() for one in rows] == content
    files = ImageFiles.from_paths(rows, list("abcd"), size=None, encode="jpeg", quality=95, max_pixels=10**6)
    items = list(files.samples(0, 4))
    assert [item.members.get("png") for item in items] == [*content[:3], None]
    assert [bool(item.reason) for item in items] == [False, False, False, True]
    assert sorted(len(part) for part in split_held_out(rows, 1)) == [1, 3]
    if kind != "set":
        with pytest.raises(ValueError, match=r"`dataset_split`='other'|Unknown split"):
            open_rows(row._replace(split="other"))
    with pytest.raises(ValueError, match="`image_column`='picture' must be 'image'"):
        open_rows(row._replace(column="picture"))


def test_datasets_decodes_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither the column that is asked for nor any other one."""
    made = make_set(tmp_path / "in", other=[{"bytes": b"x", "path": None}] * 4)
    made.cast_column("other", datasets.Image()).save_to_disk(tmp_path / "place")
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *_, **__: pytest.fail("decoded"))
    assert ImageRow(str(tmp_path / "place"), number=1).read_bytes() == (tmp_path / "in" / "1.png").read_bytes()


def test_a_name_of_the_hub_is_downloaded_only_if_that_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *where, **how: asked.append((where, how)) or 1 / 0)
    with pytest.raises(FileNotFoundError, match=r"`dataset`=owner/name does not exist.*dataset_from_hub true"):
        open_rows(ImageRow("owner/name"))
    assert not asked
    with pytest.raises(ZeroDivisionError):
        open_rows(ImageRow("owner/name", "test", from_hub=True))
    assert asked == [(("owner/name",), {"split": "test"})]


def test_without_the_package_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dataset_rows, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"pip install 'seecoder\[datasets\]'"):
        open_rows(ImageRow(str(tmp_path)))


@pytest.mark.parametrize("column", [[1, 2], [[{"bytes": b"x", "path": None}]] * 2])
def test_a_column_of_something_else_is_refused_in_one_line(tmp_path: Path, column: list[Any]):
    datasets.Dataset.from_dict({"image": column}).save_to_disk(tmp_path / "place")
    with pytest.raises(ValueError, match=r"`image_column`=image must be a column of pictures; it is .+\.$") as caught:
        open_rows(ImageRow(str(tmp_path / "place")))
    assert "\n" not in str(caught.value)


def test_addresses_in_place_of_pictures_are_named_as_what_they_are_and_not_shown(tmp_path: Path):
    datasets.Dataset.from_dict({"image": ["https://me:secret@host/0.jpg"]}).save_to_disk(tmp_path / "place")
    row = ImageRow(str(tmp_path / "place"))
    files = ImageFiles.from_paths([row], ["a"], size=None, encode="jpeg", quality=95, max_pixels=10**6)
    assert [item.reason for item in files.samples(0, 1)] == ["FileNotFoundError: its path is that of no file here"]
