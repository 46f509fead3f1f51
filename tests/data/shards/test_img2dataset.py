"""img2dataset's folders are read as they are, and can be given a manifest."""

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.build import main as build
from data.shards.img2dataset import IN_FOLDERS, OTHER_PICTURE, make_manifest, take_stock
from data.shards.index import index_path, needed_kinds, read_headers
from data.shards.manifest import read_manifest
from data.shards.reading.skips import TooManySkipped, check_passed
from data.shards.reading.square_image import SquareImage
from data.shards.shard_set import open_shards
from tests.fixtures.images import encode
from tests.fixtures.shards import AttributedSquare, make_loader, picture, write_pairs


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
    loader = make_loader(folder, transform, 3, rank=0, world_size=1, shuffle=False, endless=False, ceiling=1.0)
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
    loader = make_loader(folder, SquareImage(16), 2, rank=0, world_size=1, shuffle=False, endless=False, ceiling=1.0)
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


PIXEL = encode(Image.new("L", (1, 1)), "PNG")  # content decides, not the name


def tar_bytes(keys: range, kind: str = "jpg", content: bytes = PIXEL) -> bytes:
    with io.BytesIO() as stream:
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for key in keys:
                info = tarfile.TarInfo(f"{key:05d}.{kind}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return stream.getvalue()


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Three shards of five samples, without statistics and manifest."""
    for shard in range(3):
        (tmp_path / f"{shard:05d}.tar").write_bytes(tar_bytes(range(5 * shard, 5 * shard + 5)))
    return tmp_path


def lost(folder: Path) -> dict[str, tuple[str, int]]:
    """What is passed over: reason and lost samples by the file's name."""
    return {Path(skip.name).name: (skip.reason, skip.samples) for skip in take_stock(folder)[1]}


@pytest.mark.parametrize(
    ("name", "content", "reason", "samples"),
    [
        ("3.tar", gzip.compress(tar_bytes(range(9))), "not a tar file", 5),
        ("3.tar", b"\x28\xb5\x2f\xfd" + bytes(99), "not a tar file", 5),
        ("3.tar", b"version https://git-lfs.github.com/spec/v1\n", "not a tar file", 5),
        ("3.tar", b"<!DOCTYPE html><html>", "not a tar file", 5),
        ("3.tar", b"", "empty shard", 5),
        ("3.tar", tar_bytes(range(4))[:2560], "truncated shard", 3),  # two of the usual five are there
        ("3.tar", tar_bytes(range(0)), "short shard", 5),
        ("3.tar.gz", gzip.compress(tar_bytes(range(9))), "name that is not `LETTERS_AND_DIGITS.tar`", 5),
        ("3.tar.part", b"x", "name that is not `LETTERS_AND_DIGITS.tar`", 5),
        ("3.tar.zstd", b"x", "name that is not `LETTERS_AND_DIGITS.tar`", 5),
        ("3.tar.aria2", b"x", "name that is not `LETTERS_AND_DIGITS.tar`", 5),
        ("3.tar.000", b"x", "name that is not `LETTERS_AND_DIGITS.tar`", 5),
        ("00001 (1).tar", tar_bytes(range(5, 10)), "copy of another shard", 0),
        ("00001 - Copy.tar", tar_bytes(range(5, 10)), "copy of another shard", 0),
        ("._00001.tar", b"\0\5\x16\7", "hidden file", 0),
    ],
)
def test_files_that_are_no_shards_are_named_with_what_is_lost(
    plain: Path, name: str, content: bytes, reason: str, samples: int
):
    (plain / name).write_bytes(content)
    assert lost(plain) == {name: (reason, samples)}
    counts = [shard.samples for shard in take_stock(plain)[0]]
    assert counts == ([5, 5, 5, 2] if reason == "truncated shard" else [5, 5, 5])


def test_links_to_nowhere_and_folders_are_named(plain: Path):
    (plain / "3.tar").symlink_to(plain / "none.tar")
    (plain / "4.tar").mkdir()
    assert lost(plain) == {"3.tar": ("missing shard", 5), "4.tar": ("unreadable shard", 5)}


def test_a_second_download_with_other_content_is_read(plain: Path):
    (plain / "00001 (1).tar").write_bytes(tar_bytes(range(20, 27)))
    shards, passed = take_stock(plain)
    assert [(shard.name, shard.samples) for shard in shards][1:3] == [("00001 (1).tar", 7), ("00001.tar", 5)]
    assert not passed


def test_shards_below_are_named_by_their_folders(plain: Path):
    (plain / "b").mkdir()
    for shard in plain.glob("*.tar"):
        shard.rename(plain / "b" / shard.name)
    with pytest.raises(FileNotFoundError, match=r"holds no \.tar files.*Give the folders that do: `[^`]*/b`"):
        take_stock(plain)


def test_a_shard_that_statistics_count_is_looked_into_when_its_end_is_not_one(folder: Path):
    assert not take_stock(folder)[1]
    os.truncate(folder / "00000.tar", 3000)
    ((reason, samples),) = lost(folder).values()
    assert reason == "truncated shard"
    assert 1 <= samples <= 4


def test_links_in_a_shard_are_lost_samples_and_hidden_members_are_not(plain: Path):
    with tarfile.open(plain / "00001.tar", "w") as tar:
        for name in ("1.jpg", "2.jpg", "._2.jpg", "3.jpg"):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = (tarfile.SYMTYPE, "/x/3.jpg") if name == "3.jpg" else (tarfile.REGTYPE, "")
            tar.addfile(info)
    assert {skip.reason: skip.samples for skip in take_stock(plain)[1]} == {"no picture": 1, "hidden file": 0}


def test_index_takes_in_what_came_later_behind_what_it_has(plain: Path):
    (plain / "00000.tar").rename(plain / "later.tar")
    make_manifest(plain)
    (plain / "later.tar").rename(plain / "moved")
    (plain / "00000.tar").write_bytes((plain / "moved").read_bytes())
    shards, passed = take_stock(plain, read_manifest(plain))
    assert [shard.name for shard in shards] == ["00001.tar", "00002.tar", "later.tar"]
    assert {Path(skip.name).name: (skip.reason.split(" (")[0], skip.samples) for skip in passed} == {
        "00000.tar": ("shard that is not in the manifest", 0),
        "later.tar": ("missing shard", 5),
    }
    (plain / "moved").rename(plain / "later.tar")
    assert [shard.name for shard in make_manifest(plain)[0].shards] == [
        "00001.tar",
        "00002.tar",
        "later.tar",
        "00000.tar",
    ]
    assert not take_stock(plain, read_manifest(plain))[1]


def test_index_leaves_out_a_damaged_shard_below_the_ceiling_and_refuses_above(plain: Path):
    (plain / "3.tar").write_bytes(b"no tar")
    with pytest.raises(ValueError, match=r"5 of 20 samples could not be read, above the ceiling of 1\.00%.*3\.tar"):
        make_manifest(plain)
    manifest, passed = make_manifest(plain, ceiling=0.25)
    assert (manifest.samples, len(passed)) == (15, 1)


def test_a_manifest_of_a_build_is_not_added_to(make_shards: Callable[..., Path]):
    folder = make_shards([3])
    (folder / "9.tar").write_bytes(tar_bytes(range(2)))
    with pytest.raises(FileExistsError, match="exists already"):
        make_manifest(folder)


def test_headers_are_read_once_before_the_first_batch(folder: Path, monkeypatch: pytest.MonkeyPatch):
    for path in folder.glob("*"):
        path.unlink() if path.suffix == ".json" else os.utime(path, (1, 1))
    opened: list[str] = []
    real = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *args, **kw: (opened.append(kw["fileobj"].name), real(*args, **kw))[1])
    for _ in range(3):  # as a training does: to check, to compare caches, to read
        loader = make_loader(folder, SquareImage(16), 2, rank=0, world_size=1, batches=4)
    assert len(list(loader)) == 4
    assert sorted(opened) == sorted(str(path) for path in folder.glob("*.tar"))


def forget(folder: Path, *names: str) -> None:
    """Leave out of a manifest what versions before did not write: sizes, and what is odd about members."""
    content = json.loads((folder / "manifest.json").read_text())
    if "sizes" in names:
        content["shards"] = [{key: row[key] for key in row if key != "sizes"} for row in content["shards"]]
    if "passed_over" in names:
        del content["settings"]["passed_over"]
    (folder / "manifest.json").write_text(json.dumps(content))


def test_one_call_adds_sizes_and_takes_in_new_shards(plain: Path):
    make_manifest(plain)
    forget(plain, "sizes", "passed_over")
    (plain / "00003.tar").write_bytes(tar_bytes(range(15, 20)))
    manifest, passed = make_manifest(plain)
    assert [shard.name for shard in manifest.shards] == [f"0000{number}.tar" for number in range(4)]
    assert all(shard.sizes is not None for shard in manifest.shards)
    assert not passed
    with pytest.raises(FileExistsError, match="exists already"):
        make_manifest(plain)


def test_index_counts_an_indexed_shard_that_is_gone(plain: Path):
    make_manifest(plain)
    (plain / "00000.tar").unlink()
    (plain / "00003.tar").write_bytes(tar_bytes(range(15, 20)))
    with pytest.raises(ValueError, match=r"5 of 20 samples could not be read.*00000\.tar`: missing shard"):
        make_manifest(plain)
    manifest, passed = make_manifest(plain, ceiling=0.3)
    assert manifest.samples == 20
    assert [(Path(skip.name).name, skip.samples) for skip in passed] == [("00000.tar", 5)]


def with_a_link(folder: Path) -> None:
    """Add a shard of eleven samples, one of them a link and one without an extension beside them."""
    with tarfile.open(folder / "00003.tar", "w") as tar:
        for name in ("README", *(f"{number}.jpg" for number in range(11))):
            info = tarfile.TarInfo(name)
            info.size = len(PIXEL) * (name != "3.jpg")
            info.type, info.linkname = (tarfile.SYMTYPE, "/x/3.jpg") if name == "3.jpg" else (tarfile.REGTYPE, "")
            tar.addfile(info, io.BytesIO(PIXEL))


def test_what_is_lost_inside_indexed_shards_is_told_from_the_manifest(plain: Path):
    with_a_link(plain)
    _, before = make_manifest(plain, ceiling=0.1)
    assert {skip.reason: skip.samples for skip in before} == {"no picture": 1, "no extension": 0}
    assert open_shards(plain).passed == tuple(before)
    forget(plain, "passed_over")  # as versions before wrote it: nothing is known, until it is indexed again
    assert not open_shards(plain).passed
    make_manifest(plain, ceiling=0.1)
    assert open_shards(plain).passed == tuple(before)


@pytest.mark.parametrize(
    "notes", [None, [], "x", {"00003.tar": 3}, {"00003.tar": [["a", "b", "c"]]}, {"00003.tar": [5]}]
)
def test_damaged_notes_are_left_aside(plain: Path, notes: object):
    with_a_link(plain)
    make_manifest(plain, ceiling=0.1)
    content = json.loads((plain / "manifest.json").read_text())
    content["settings"]["passed_over"] = notes
    (plain / "manifest.json").write_text(json.dumps(content))
    assert not open_shards(plain).passed


@pytest.mark.parametrize("kind", ["input.jpg", "gif", "bmp"])
def test_pictures_under_other_names_are_said_by_index_and_lost_unless_they_are_chosen(plain: Path, kind: str):
    for number, path in enumerate(sorted(plain.glob("*.tar"))):
        path.write_bytes(tar_bytes(range(5 * number, 5 * number + 5), kind))
    for has_manifest in (False, True):
        found = open_shards(plain).passed
        assert [(skip.reason, skip.samples) for skip in found] == [(OTHER_PICTURE, 5)] * 3
        with pytest.raises(
            TooManySkipped, match=rf"15 of 15 .*00000\.tar`: no picture under .*`image_member`.*'{kind}'"
        ):
            check_passed(found, 15, 0.01)
        assert not open_shards(plain, needed=((kind,),)).passed
        assert [skip.samples for skip in open_shards(plain, needed=(("webp",),)).passed] == [5, 5, 5]
        if not has_manifest:
            assert [(skip.reason, skip.samples) for skip in make_manifest(plain)[1]] == [(OTHER_PICTURE, 0)] * 3


def test_pictures_that_cannot_be_opened_are_counted_by_index_and_by_all_who_read_its_manifest(plain: Path):
    (plain / "00001.tar").write_bytes(tar_bytes(range(5, 10), content=b"<html>not found</html>"))
    with pytest.raises(TooManySkipped, match=r"5 of 15 .*00001\.tar`: picture that cannot be opened \(5 of 5\)"):
        make_manifest(plain)
    assert not (plain / "manifest.json").exists()
    manifest, passed = make_manifest(plain, ceiling=0.5)
    assert manifest.samples == 15
    expected = [("picture that cannot be opened", 5)]
    assert [(skip.reason, skip.samples) for skip in passed] == expected
    assert [(skip.reason, skip.samples) for skip in open_shards(plain).passed] == expected


def test_what_index_leaves_out_counts_as_lost_with_all_that_could_be_read_of_it(plain: Path):
    with (plain / "00001.tar").open("ab") as file:
        file.write(b"rubbish" * 200)
    assert lost(plain) == {"00001.tar": ("damaged shard", 1)}, "a training reads the five before it"
    with pytest.raises(TooManySkipped, match=r"6 of 16 .*and is left out"):
        make_manifest(plain, ceiling=0.3)
    assert make_manifest(plain, ceiling=0.4)[0].samples == 10


def test_brackets_and_capitals_in_names_of_shards_are_no_reason_to_leave_them_out(plain: Path):
    for name in ("part[0].tar", "a & b.tar", "~c'.TAR"):
        (plain / name).write_bytes(tar_bytes(range(2)))
    assert not lost(plain)
    assert make_manifest(plain)[0].samples == 21
    assert open_shards(plain / "part[0].tar").counts == open_shards(plain / "~c'.TAR").counts == [2]


BESIDE = {
    2: {"mask.png": None},
    3: {"mask.png": None, "reference.png": None},
    5: {"reference.png": None, "png": None},
    6: {"mask.png": picture(0, 16)},
    7: {"mask.png": b"<html>gone</html>"},
    8: {"reference.png": b""},
}


@pytest.mark.parametrize("is_indexed", [False, True])
def test_a_training_of_pairs_loses_samples_without_reference_or_mask(tmp_path: Path, is_indexed: bool):
    folder = write_pairs(tmp_path / "pairs" / "0.tar", 20, odd=BESIDE).parent
    if is_indexed:
        make_manifest(folder, ceiling=0.1)

    def lost(*beside: str) -> dict[str, int]:
        passed = open_shards(folder, needed=needed_kinds(None, *beside)).passed
        assert all(str(folder / "0.tar") in skip.detail for skip in passed)
        return {skip.reason: skip.samples for skip in passed if skip.samples}

    assert lost() == {OTHER_PICTURE: 1}
    assert lost("reference") == {OTHER_PICTURE: 1, "no `reference`": 1}
    assert lost("mask") == {OTHER_PICTURE: 1, "no `mask`": 2}
    assert lost("reference", "mask") == {OTHER_PICTURE: 1, "no `reference`": 1, "no `mask`": 1}
    assert lost("depth") == {OTHER_PICTURE: 1, "no `depth`": 19}
    passed = open_shards(folder, needed=needed_kinds(None, "mask")).passed
    (skip,) = (skip for skip in passed if skip.samples == 2)
    assert skip.detail.endswith("no `mask` (2 of 20, as with '002')")


def test_index_and_verify_say_what_is_missing_or_of_no_use_beside_the_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    folder = write_pairs(tmp_path / "pairs" / "0.tar", 20, odd=BESIDE).parent
    expected = {"no `mask`, or of no use": 0, "no `reference`, or of no use": 0}
    _, passed = make_manifest(folder, ceiling=0.1)
    for found in (passed, open_shards(folder).passed):
        assert {skip.reason: skip.samples for skip in found if skip.reason != OTHER_PICTURE} == expected
    caplog.clear()
    assert build(["verify", str(folder)]) == 0
    assert "no `mask`, or of no use (4 of 20, as with '002')" in caplog.text
    assert "no `reference`, or of no use (3 of 20, as with '003')" in caplog.text
    assert "but for what was passed over" in capsys.readouterr().out


@pytest.mark.parametrize("black", [1, 4])
def test_masks_that_are_black_all_over_are_said(tmp_path: Path, black: int):
    side = 256
    odd = {number: {"mask.png": encode(np.zeros((side, side), np.uint8), "PNG")} for number in range(black)}
    folder = write_pairs(tmp_path / "pairs" / "0.tar", 4, side, odd).parent
    (skip,) = make_manifest(folder)[1]
    assert (skip.reason, skip.samples) == ("no `mask`, or of no use", 0)
    assert f"({black} of 4, as with '000')" in skip.detail


def test_whole_pairs_are_indexed_without_a_word(tmp_path: Path):
    folder = write_pairs(tmp_path / "pairs" / "0.tar", 4).parent
    assert not make_manifest(folder)[1]
    assert not open_shards(folder, needed=needed_kinds(None, "reference", "mask")).passed


def test_masks_that_are_taken_for_pictures_are_said(tmp_path: Path):
    folders, beside = tmp_path / "folders", tmp_path / "beside"
    for folder, names in ((folders, ("img/{}.jpg", "mask/{}.png")), (beside, ("{}.jpg", "{}.png"))):
        folder.mkdir()
        with tarfile.open(folder / "0.tar", "w") as tar:
            for name in (name.format(number) for name in names for number in range(4)):
                info = tarfile.TarInfo(name)
                info.size = len(PIXEL)
                tar.addfile(info, io.BytesIO(PIXEL))
    expected = {
        folders: f"{IN_FOLDERS} (8 ",
        beside: "png beside jpg: png is taken for the picture, `image_member` chooses (4 ",
    }
    for folder, words in expected.items():
        for looks in (lambda folder=folder: take_stock(folder)[1], lambda folder=folder: make_manifest(folder)[1]):
            assert [(skip.detail, skip.samples) for skip in looks()] == [(f"`{folder / '0.tar'}`: {words}members)", 0)]
        assert [skip.detail for skip in open_shards(folder).passed] == [f"`{folder / '0.tar'}`: {words}members)"]
    assert not open_shards(beside, needed=needed_kinds("jpg")).passed, "who chooses needs no word"
