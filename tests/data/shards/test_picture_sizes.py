"""Sizes of pictures in the manifest: measured when shards are built or indexed, upright, bound to their shard."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.build import main as build
from data.shards.building.shard_build import write_shard
from data.shards.manifest import Manifest, Shard, read_manifest, write_manifest
from data.shards.picture_sizes import picture_sizes
from tests.fixtures.shards import save_image

HEIGHTS_AND_WIDTHS = [(20, 30), (31, 17), (24, 24)]


def folder_of_sizes(folder: Path) -> Path:
    for number, (height, width) in enumerate(HEIGHTS_AND_WIDTHS):
        save_image(folder / f"{number}.png", height, width, seed=number)
    return folder


def all_sizes(folder: Path) -> list[list[int]]:
    return np.concatenate([picture_sizes(shard) for shard in read_manifest(folder).shards]).tolist()


def test_a_build_measures_its_pictures_and_a_second_run_keeps_what_it_measured(tmp_path: Path) -> None:
    arguments = ["folder", str(folder_of_sizes(tmp_path / "in")), str(tmp_path / "out"), "--samples-per-shard", "2"]
    assert build(arguments) == 0
    assert all_sizes(tmp_path / "out") == [list(size) for size in HEIGHTS_AND_WIDTHS]
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    assert build(arguments) == 0
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before


def test_a_picture_that_lies_on_its_side_is_measured_upright_and_a_bad_one_has_no_size(tmp_path: Path) -> None:
    with io.BytesIO() as stream:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (40, 10)).save(stream, "JPEG", exif=exif)
        turned = stream.getvalue()
    shard = write_shard(
        tmp_path / "0.tar", [("0", {"jpg": turned}), ("1", {"jpg": b"no picture"}), ("2", {"txt": b"a"})]
    )
    assert picture_sizes(shard).tolist() == [[40, 10], [0, 0], [0, 0]]


def test_index_adds_sizes_to_a_manifest_without_and_changes_nothing_else(tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert build(["folder", str(folder_of_sizes(tmp_path / "in")), str(out), "--samples-per-shard", "2"]) == 0
    whole = (out / "manifest.json").read_bytes()
    manifest = read_manifest(out)
    write_manifest(out, replace(manifest, shards=tuple(replace(shard, sizes=None) for shard in manifest.shards)))
    content = json.loads((out / "manifest.json").read_text())
    for shard in content["shards"]:
        del shard["sizes"]  # as versions before wrote it
    (out / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"`sizes` of shard 00000.tar .* index FOLDER"):
        all_sizes(out)
    assert build(["index", str(out)]) == 0
    assert (out / "manifest.json").read_bytes() == whole
    capsys.readouterr()
    assert build(["index", str(out)]) == 2  # there is nothing to add
    assert "exists already" in capsys.readouterr().err


def test_index_refuses_a_shard_that_has_lost_samples(tmp_path: Path, capsys) -> None:
    shard = write_shard(tmp_path / "0.tar", [("0", {"png": b"x"})])
    write_manifest(tmp_path, Manifest((Shard("0.tar", 2, shard.bytes, shard.sha256),)))
    assert build(["index", str(tmp_path)]) == 2
    assert "has lost samples" in capsys.readouterr().err


@pytest.mark.parametrize("sizes", [None, "", "!", "AAAA", "eJwDAAAAAAE=", 7])
def test_damaged_sizes_are_refused(sizes: Any) -> None:
    with pytest.raises(ValueError, match="not those of 3 pictures"):
        picture_sizes(Shard("0.tar", 3, sizes=sizes))


def test_sizes_that_unpack_to_gigabytes_are_refused_at_once() -> None:
    import base64
    import zlib

    bomb = base64.b64encode(zlib.compress(bytes(50_000_000), 9)).decode()
    with pytest.raises(ValueError, match="not those of 3 pictures"):
        picture_sizes(Shard("0.tar", 3, sizes=bomb))
