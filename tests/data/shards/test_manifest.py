"""The manifest says what is there; nothing but local paths and https gets in."""

import json
from pathlib import Path

import pytest

from data.shards.manifest import Manifest, Shard, join, locate, read_manifest, write_manifest
from data.shards.shard_set import LocatedShard, ShardSet, check_location, open_shards

SHARDS = (Shard("00000.tar", 3, 10240, "0" * 64), Shard("00001.tar", 4, 20480, "1" * 64))


def test_round_trip_is_exact(tmp_path: Path):
    manifest = Manifest(SHARDS, ("json", "png"), {"kind": "world", "seed": 1})
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert read_manifest(tmp_path).to_json() == manifest.to_json()
    assert manifest.samples == 7
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(
    "name", ["../evil.tar", "/etc/a.tar", "a/b.tar", "..tar", ".tar", "a.zip", "a.tar\n", "pipe:x.tar", 7]
)
def test_shard_names_cannot_lead_elsewhere(name: object):
    with pytest.raises(ValueError, match="not a shard's name"):
        Shard(name, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 2},
        {"totals": {"samples": 8, "shards": 2}},
        {"shards": [{"name": "../a.tar", "samples": 7}]},
        {"shards": [{"name": "a.tar", "samples": -7}]},
        {"shards": [{"name": "a.tar", "samples": 7, "sha256": "short"}]},
        {"shards": [{"name": "a.tar", "samples": 7, "surprise": 1}]},
        {"shards": [{"name": "a.tar", "samples": 3}, {"name": "a.tar", "samples": 4}]},
        {"shards": 5},
        {"shards": [{"name": "a.tar", "samples": 2**31}], "totals": {"samples": 2**31, "shards": 1}},
        {"shards": [{"name": "a.tar", "samples": 10**30}], "totals": {"samples": 10**30, "shards": 1}},
        {"shards": [{"name": "a.tar", "samples": True}], "totals": {"samples": 1, "shards": 1}},
        {"shards": [{"name": "a.tar", "samples": 7.0}], "totals": {"samples": 7, "shards": 1}},
        {"shards": [{"name": "a.tar", "samples": 7, "bytes": float("inf")}]},
        {"members": "png"},
        {"members": {"png": 1}},
        {"members": ["a\nb"]},
        {"members": [""]},
        {"members": [5]},
        {"members": [["png"]]},
    ],
)
def test_unusable_manifests_are_refused(change: dict):
    content = json.loads(Manifest(SHARDS).to_json()) | change
    with pytest.raises(ValueError, match="`here` is no usable manifest") as caught:
        Manifest.from_json(json.dumps(content), "here")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["", "[", "[]", "null", "{}", "[" * 100_000])
def test_rubbish_is_refused(text: str):
    with pytest.raises(ValueError, match="no usable manifest"):
        Manifest.from_json(text, "here")


def test_a_refusal_is_one_short_line_whatever_the_file_holds():
    for text in (b"\xff" * 10_000, b'{"format": "' + b"x" * 10_000 + b'"}', b'{"format": "a\\nb\x80"}'):
        with pytest.raises(ValueError, match="no usable manifest") as caught:
            Manifest.from_json(text, "here")
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "location",
    [
        "pipe:touch /tmp/owned",
        "PIPE:cat x",
        "http://host/shards",
        "file:///etc",
        "s3://bucket/a",
        "gs://bucket/a",
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


def test_local_paths_and_https_pass(tmp_path: Path):
    assert check_location(tmp_path) == tmp_path
    assert check_location(str(tmp_path)) == tmp_path
    assert check_location("https://host/a") == "https://host/a"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        check_location(tmp_path / "none")


def test_locations_are_joined_to_names():
    assert [row.location for row in locate(Path("/a"), Manifest(SHARDS))] == [
        Path("/a/00000.tar"),
        Path("/a/00001.tar"),
    ]
    for base in ("https://host/a", "https://host/a/"):
        assert [row.location for row in locate(base, Manifest(SHARDS))][1] == "https://host/a/00001.tar"


def test_fingerprint_is_of_contents_not_of_places():
    def fingerprint(folder: str, shard: Shard) -> str:
        return ShardSet((LocatedShard(shard, Path(folder) / shard.name, ()),)).fingerprint

    assert fingerprint("/a", SHARDS[0]) == fingerprint("/b", SHARDS[0])
    assert fingerprint("/a", SHARDS[0]) != fingerprint("/a", SHARDS[1])
    assert fingerprint("/a", Shard("a.tar", 1, 5, "0" * 64)) != fingerprint("/a", Shard("a.tar", 1, 5, "1" * 64))


def test_no_shards_at_all_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="No shards"):
        join([])
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
