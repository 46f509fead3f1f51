"""The manifest says what is there, and is checked when it is read."""

import json
from pathlib import Path

import pytest

from data.shards.manifest import Manifest, Shard, read_manifest, write_manifest

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


@pytest.mark.parametrize("name", ["train#1.tar", "a%20b.tar", "caf\u0065\u0301.tar", "a;b.tar", "-0 \u2013 $1.TAR"])
def test_shards_may_be_called_what_files_are_called(name: str):
    assert Shard(name, 1).name == name


@pytest.mark.parametrize("name", ["a\u200b.tar", "a\u202erat.tar", "a\udc80.tar", " a.tar", "a*.tar", "a\\b.tar"])
def test_names_that_cannot_be_seen_or_written_down_are_refused(name: str):
    with pytest.raises(ValueError, match="not a shard's name") as caught:
        Shard(name, 1)
    assert str(caught.value).isprintable()


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
