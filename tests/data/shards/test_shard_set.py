"""From places to shards: nothing but local paths and https gets in."""

import os
from pathlib import Path
from typing import Any

import pytest

from data.shards.img2dataset import BELOW, NEW, UNLISTED
from data.shards.manifest import Manifest, Shard, write_manifest
from data.shards.remote.fetcher import Fetcher
from data.shards.shard_set import REPEATED, LocatedShard, ShardSet, check_location, is_there, open_shards

SHARDS = (Shard("00000.tar", 3, 10240, "0" * 64), Shard("00001.tar", 4, 20480, "1" * 64))


@pytest.mark.parametrize(
    "location",
    [
        "pipe:touch /tmp/owned",
        "PIPE:cat x",
        "http://host/shards",
        "file://host/etc",
        "s3:///a",
        "memory://a",
        "github://a:b@c",
        "s3n://bucket/a",
        "hdfs://a",
        "ftp://host/a",
        "https://",
        "https:relative",
        "javascript:1",
    ],
)
def test_other_schemes_are_refused(location: str):
    with pytest.raises(ValueError, match="neither a local path nor an https"):
        check_location(location)
    with pytest.raises(ValueError, match="neither a local path nor an https"):
        open_shards([location])


def test_local_paths_https_and_stores_pass(tmp_path: Path):
    assert check_location(tmp_path) == tmp_path
    assert check_location(str(tmp_path)) == tmp_path
    (tmp_path / "a b").mkdir()
    for way in ("file://", "FILE://localhost", "file:"):
        assert check_location(f"{way}{tmp_path}/a%20b") == tmp_path / "a b"
    for address in ("https://host/a", "s3://bucket/a", "gs://my_bucket/a", "hf://datasets/owner/name"):
        assert check_location(address) == address
    with pytest.raises(FileNotFoundError, match="does not exist"):
        check_location(tmp_path / "none")


def test_shards_of_an_address_lie_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fetcher = Fetcher(tmp_path)
    monkeypatch.setattr(Fetcher, "manifest", lambda self, url: Manifest(SHARDS))
    for address in ("https://host/a", "https://host/a/", "https://host/a/manifest.json"):
        assert [row.location for row in open_shards(address, fetcher).shards] == [
            "https://host/a/00000.tar",
            "https://host/a/00001.tar",
        ]
    write_manifest(tmp_path, Manifest(SHARDS))
    assert [row.location for row in open_shards(tmp_path).shards] == [tmp_path / "00000.tar", tmp_path / "00001.tar"]


def test_what_a_manifest_on_a_server_notes_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    notes = {
        "passed_over": {
            "00000.tar": [["no picture", "1 of 2", 1]],
            "00001.tar": [["no `mask`, or of no use", "1 of 3", 0]],
        }
    }
    monkeypatch.setattr(Fetcher, "manifest", lambda fetcher, url: Manifest(SHARDS, settings=notes))
    passed = open_shards("https://me:secret@host/a?token=hidden", Fetcher(tmp_path)).passed
    assert [(skip.reason, skip.samples) for skip in passed] == [("no picture", 1), ("no `mask`, or of no use", 0)]
    assert passed[0].detail == "`https://host/a/00000.tar`: no picture (1 of 2)"
    one = open_shards("https://host/a/00001.tar", Fetcher(tmp_path)).passed
    assert [skip.samples for skip in one] == [0]


def test_fingerprint_is_of_contents_not_of_places():
    def fingerprint(folder: str, shard: Shard) -> str:
        return ShardSet((LocatedShard(shard, Path(folder) / shard.name, ()),)).fingerprint

    assert fingerprint("/a", SHARDS[0]) == fingerprint("/b", SHARDS[0])
    assert fingerprint("/a", SHARDS[0]) != fingerprint("/a", SHARDS[1])
    assert fingerprint("/a", Shard("a.tar", 1, 5, "0" * 64)) != fingerprint("/a", Shard("a.tar", 1, 5, "1" * 64))


def test_no_shards_at_all_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="No shards"):
        open_shards([])
    with pytest.raises(FileNotFoundError, match=r"holds no \.tar files"):
        open_shards(tmp_path)


def test_an_unfinished_build_is_not_read(tmp_path: Path):
    (tmp_path / "build.json").write_text("{}")
    (tmp_path / "00000.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="unfinished build"):
        open_shards(tmp_path)


def test_several_places_are_laid_end_to_end(make_shards):
    places = [make_shards([2, 3], "a"), make_shards([4], "b")]
    assert open_shards(places).counts == [2, 3, 4]
    assert open_shards(places[0] / "manifest.json").counts == [2, 3]


def test_refusals_keep_the_secret():
    for refuse in (check_location, open_shards):
        with pytest.raises(ValueError, match="`ftp://host/a` is neither") as caught:
            refuse("ftp://me:secret@host/a?token=secret")
        assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match="give a `cache` folder") as caught:
        open_shards("https://me:secret@host/a")
    assert "secret" not in str(caught.value)


def located(place: str | Path, below: Path) -> list[str]:
    return [str(Path(row.location).relative_to(below)) for row in open_shards(place).shards]


@pytest.mark.parametrize(
    ("notation", "expected"),
    [
        ("a/{00000..00001}.tar", ["a/00000.tar", "a/00001.tar"]),
        ("a/{00002,00000}.tar", ["a/00000.tar", "a/00002.tar"]),
        ("{b,a}/00001.tar", ["b/00001.tar", "a/00001.tar"]),
        ("b/00001.tar", ["b/00001.tar"]),
        ("a/0000[12].tar", ["a/00001.tar", "a/00002.tar"]),
        ("?/*.tar", ["a/00000.tar", "a/00001.tar", "a/00002.tar", "b/00000.tar", "b/00001.tar"]),
        ("**/*0.tar", ["a/00000.tar", "b/00000.tar"]),
        ("{b,a}", ["b/00000.tar", "b/00001.tar", "a/00000.tar", "a/00001.tar", "a/00002.tar"]),
        ("b::{}/a/00001.tar", ["b/00000.tar", "b/00001.tar", "a/00001.tar"]),
        ("a/00000.tar::{}/a", ["a/00000.tar", "a/00000.tar", "a/00001.tar", "a/00002.tar"]),
        ("a/manifest.json::{}/b/00000.tar", ["a/00000.tar", "a/00001.tar", "a/00002.tar", "b/00000.tar"]),
        (".", ["a/00000.tar", "a/00001.tar", "a/00002.tar", "b/00000.tar", "b/00001.tar"]),
    ],
)
@pytest.mark.parametrize("has_manifests", [True, False])
def test_notations_that_people_know_are_understood(
    make_shards, tmp_path: Path, notation: str, expected: list[str], has_manifests: bool
):
    make_shards([2, 3, 4], "a")
    make_shards([5, 6], "b")
    for path in [] if has_manifests else tmp_path.rglob("*.json"):
        if not notation.startswith("a/manifest"):
            path.unlink()
    place = f"{tmp_path}/{notation.replace('{}', str(tmp_path))}"
    assert located(place, tmp_path) == expected
    assert located(Path(place), tmp_path) == expected
    assert is_there(place)
    assert not open_shards(place).passed


def test_a_shard_of_a_notation_that_is_not_there_is_lost_by_name(make_shards, tmp_path: Path):
    folder = make_shards([2, 3])
    for path in folder.glob("*.json"):
        path.unlink()
    found = open_shards(f"{folder}/{{00000..00002}}.tar")
    assert found.counts == [2, 3]
    assert [(Path(skip.name).name, skip.reason, skip.samples) for skip in found.passed] == [
        ("00002.tar", "missing shard", 3)
    ]
    with pytest.raises(ValueError, match=r"No shards were found\. `.*none\*\.tar`"):
        open_shards(f"{folder}/none*.tar")


def test_shards_of_a_notation_that_the_manifest_lacks_are_named(make_shards, tmp_path: Path, monkeypatch):
    folder = make_shards([2, 3])
    (folder / "00002.tar").write_bytes((folder / "00001.tar").read_bytes())
    found = open_shards([str(folder / "00000.tar"), str(folder / "00002.tar")])
    assert found.counts == [2]
    assert [(Path(skip.name).name, skip.reason) for skip in found.passed] == [("00002.tar", NEW)]
    monkeypatch.setattr(Fetcher, "manifest", lambda self, url: Manifest(SHARDS))
    found = open_shards("https://me:secret@host/a/{00001..00002}.tar::https://[::1]/b", Fetcher(tmp_path))
    assert [row.label for row in found.shards] == [
        "https://host/a/00001.tar",
        "https://[::1]/b/00000.tar",
        "https://[::1]/b/00001.tar",
    ]
    repeated = "`https://[::1]/b/00001.tar` is `https://host/a/00001.tar` (4 samples)"
    assert [skip.detail for skip in found.passed] == ["`https://host/a/00002.tar`", repeated]


def test_folders_below_are_found_behind_links_each_once_and_what_exists_is_no_notation(make_shards, tmp_path: Path):
    make_shards([2], "elsewhere")
    (tmp_path / "all[1]" / "deep").mkdir(parents=True)
    (tmp_path / "all[1]" / "deep" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "all[1]" / "loop").symlink_to(tmp_path / "all[1]")
    make_shards([3], "all[1]/near")
    make_shards([4], "all1")
    assert open_shards(str(tmp_path / "all[1]")).counts == [2, 3]
    (tmp_path / "all[1]" / "near" / "more").mkdir()
    assert open_shards(str(tmp_path / "all[1]" / "near")).counts == [3]
    assert not is_there(f"{tmp_path}/all1::{tmp_path}/none")
    with pytest.raises(FileNotFoundError, match="does not exist, or is no folder"):
        open_shards(f"{tmp_path}/all1::{tmp_path}/none")


@pytest.mark.parametrize("has_manifest", [True, False])
def test_shards_below_a_folder_with_shards_of_its_own_are_named_unless_they_are_read(
    make_shards, tmp_path: Path, has_manifest: bool
):
    near = make_shards([2])
    (near / "more").mkdir()
    below = make_shards([3], "shards/more/deep")
    for path in [] if has_manifest else tmp_path.rglob("*.json"):
        path.unlink()
    found = open_shards(near)
    assert found.counts == [2]
    assert [(skip.name, skip.reason, skip.samples) for skip in found.passed] == [(str(below), BELOW, 0)]
    both = open_shards([near, below])
    assert (both.counts, both.passed) == ([2, 3], ())
    assert not open_shards(near / "00000.tar").passed, "one shard was meant"


@pytest.fixture
def closed(make_shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shards that cannot be listed, beside one that can."""
    (tmp_path / "all").mkdir()
    make_shards([2], "all/part-0")
    make_shards([3], "all/part-1")
    place, access = tmp_path / "all" / "part-1", os.access

    def refusing(function: Any) -> Any:
        def call(path: Any = ".") -> Any:
            if os.path.normpath(path) == str(place):
                raise PermissionError(13, "Permission denied", str(path))
            return function(path)

        return call

    monkeypatch.setattr(os, "scandir", refusing(os.scandir))
    monkeypatch.setattr(os, "listdir", refusing(os.listdir))
    monkeypatch.setattr(os, "access", lambda path, mode: os.path.normpath(path) != str(place) and access(path, mode))
    return place


@pytest.mark.parametrize("notation", ["", "/part-*", "/part-*/*.tar", "/**/*.tar", "/{part-0,part-1}", "/*-?/0*.tar"])
def test_folders_that_cannot_be_listed_are_named(closed: Path, notation: str):
    found = open_shards(f"{closed.parent}{notation}")
    assert found.counts == [2]
    assert [(skip.name, skip.reason) for skip in found.passed] == [(str(closed), UNLISTED)]


def test_a_folder_that_cannot_be_listed_is_named_below_shards_and_alone(closed: Path, make_shards):
    (closed.parent / "part-0" / "00000.tar").rename(closed.parent / "00000.tar")
    found = open_shards(closed.parent)
    assert (str(closed), UNLISTED) in [(skip.name, skip.reason) for skip in found.passed]
    with pytest.raises(ValueError, match=r"No shards were found\. `.*part-1`: folder that cannot be listed"):
        open_shards(closed)


def test_files_beside_a_manifest_are_named(make_shards):
    folder = make_shards([2, 3])
    (folder / "00002.tar").write_bytes((folder / "00001.tar").read_bytes())
    (folder / "00000.tar").unlink()
    found = open_shards(folder)
    assert found.counts == [2, 3]
    assert [Path(skip.name).name for skip in found.passed] == ["00000.tar", "00002.tar"]
    assert [skip.samples for skip in found.passed] == [2, 0]


def test_nothing_but_files_that_cannot_be_read_is_told_by_name(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(b"\x1f\x8b")
    with pytest.raises(ValueError, match=r"No shards were found.*a\.tar`: not a tar file"):
        open_shards(tmp_path)


def test_a_folder_may_be_called_like_a_notation(make_shards, tmp_path: Path):
    folder = make_shards([2, 3], "a [1]* {b} é")
    for pattern in ("*.tar", "0000?.tar", "{00000..00001}.tar"):
        assert open_shards(f"{folder}/{pattern}").counts == [2, 3]
    found = open_shards(f"{folder}/{{00001..00002}}.tar")
    assert [(Path(skip.name).name, skip.reason, skip.samples) for skip in found.passed] == [
        ("00002.tar", "missing shard", 3)
    ]


def test_addresses_of_files_are_understood_like_paths(make_shards, tmp_path: Path):
    folder = make_shards([2, 3, 4], "a b")
    address = f"file://{tmp_path}/a%20b"
    for place in (
        address,
        f"{address}/manifest.json",
        f"{address}/0000{{0,1,2}}.tar",
        f"{address}/*.tar",
        Path(address),
    ):
        assert is_there(place)
        assert located(place, tmp_path) == located(folder, tmp_path)
    assert not is_there(f"{address}/none")


def test_shards_of_equal_content_are_named_and_counted(make_shards, tmp_path: Path):
    one, other = make_shards([2, 3], "one"), make_shards([2, 5], "other")
    passed = open_shards([one, other]).passed
    what = f"`{other / '00000.tar'}` is `{one / '00000.tar'}` (2 samples)"
    assert [(skip.reason, skip.detail, skip.samples) for skip in passed] == [(REPEATED, what, 0)]
    for path in tmp_path.rglob("*.json"):
        path.unlink()
    assert open_shards([one, other]).passed == passed
    rows = open_shards(one).shards
    assert not ShardSet(rows * 2).passed, "that an epoch goes through them twice was asked for"
