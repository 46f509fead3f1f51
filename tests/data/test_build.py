"""`python -m data.build`: what it writes, what it refuses, and that killing it changes nothing."""

import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from data import build
from data.shards.manifest import read_manifest, write_manifest
from data.shards.reading.shard_reader import ShardReader
from data.shards.shard_set import open_shards
from data.world.render import render
from data.world.scenes import sample_scenes
from tests.fixtures.shards import AttributedSquare, make_loader, save_image


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Nine pictures of several formats, in subfolders, with names that need care."""
    folder = tmp_path / "pictures"
    for number, name in enumerate(
        ["b.png", "a.jpg", "sub/c.webp", "sub/deep/d.JPG", "é ü.png", "x.y.z.png", "e.bmp", "f.tif", "g.gif"]
    ):
        save_image(folder / name, 20 + number, 40 - number, seed=number)
    (folder / "notes.txt").write_text("no picture")
    return folder


def read(folder: Path) -> list[tuple[dict[str, Any], dict[str, bytes]]]:
    """JSON and members of all samples."""
    shards = open_shards(folder)
    reader = ShardReader(shards, {"json"})
    rows = [reader.read(shard, number) for shard, count in enumerate(shards.counts) for number in range(count)]
    return [(json.loads(row["json"]), row) for row in rows]


def test_folder_keeps_bytes_and_names(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert build.main(["folder", str(pictures), str(tmp_path / "out"), "--samples-per-shard", "4"]) == 0
    output = capsys.readouterr().out
    assert "1 files in" in output
    assert "9 pictures" in output
    assert "3 shards" in output
    rows = read(tmp_path / "out")
    names = [about["source"] for about, _ in rows]
    assert names == sorted(names, key=str.encode)
    for about, members in rows:
        path = pictures / about["source"]
        kind = {".jpg": "jpg", ".png": "png", ".webp": "webp"}.get(path.suffix.lower())
        if kind is None:  # BMP, TIFF and GIF do not belong into a shard
            assert set(members) == {"jpg", "json"}
        else:
            assert members[kind] == path.read_bytes()
        with Image.open(path) as image:
            assert (about["width"], about["height"]) == image.size
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(f"0000{number}.{kind}" for number in range(3) for kind in ("index.json", "tar")),
        "manifest.json",
    ]
    manifest = read_manifest(tmp_path / "out")
    assert [shard.samples for shard in manifest.shards] == [4, 4, 1]
    assert manifest.settings["size"] == "keep"


def test_size_scales_down_and_never_up(pictures: Path, tmp_path: Path):
    arguments = ["folder", str(pictures), str(tmp_path / "out"), "--size", "24", "--encode", "png"]
    assert build.main(arguments) == 0
    for about, members in read(tmp_path / "out"):
        original = Image.open(pictures / about["source"])
        kind = next(kind for kind in ("png", "jpg", "webp") if kind in members)
        with Image.open(io.BytesIO(members[kind])) as image, original:
            assert image.size == (about["width"], about["height"])
            if min(original.size) > 24:
                assert min(image.size) == 24
                assert kind == "png"
                assert (about["original_width"], about["original_height"]) == original.size
                assert abs(image.width / image.height - original.width / original.height) < 0.05
            else:
                assert image.size == original.size


def test_pictures_pass_through_the_one_door(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    save_image(tmp_path / "in" / "turned.jpg", 20, 40, exif=exif)
    assert build.main(["folder", str(tmp_path / "in"), str(tmp_path / "out"), "--size", "10"]) == 0
    ((about, _),) = read(tmp_path / "out")
    assert (about["width"], about["height"]) == (10, 20)


def test_shard_size_begins_new_shards(pictures: Path, tmp_path: Path):
    limit = 6000
    assert build.main(["folder", str(pictures), str(tmp_path / "out"), "--shard-size", str(limit)]) == 0
    shards = open_shards(tmp_path / "out")
    sizes = [(pictures / about["source"]).stat().st_size for about, _ in read(tmp_path / "out")]
    assert len(shards.counts) > 1
    position = 0
    for count in shards.counts:
        inside = sizes[position : position + count]
        assert sum(inside) <= limit or count == 1
        position += count
        if position < len(sizes):
            assert sum(inside) + sizes[position] > limit, "shards are as full as they may be"


def test_list_is_relative_to_itself(pictures: Path, tmp_path: Path):
    listed = pictures / "list.txt"
    listed.write_text(f"# two pictures\nb.png\n\nsub/c.webp\n{pictures / 'a.jpg'}\n", encoding="utf-8")
    assert build.main(["list", str(listed), str(tmp_path / "out")]) == 0
    assert [Path(about["source"]).name for about, _ in read(tmp_path / "out")] == ["b.png", "c.webp", "a.jpg"]


def test_world_shards_hold_what_was_drawn(tmp_path: Path):
    arguments = [
        "world",
        str(tmp_path / "out"),
        "--count",
        "20",
        "--seed",
        "7",
        "--start",
        "5",
        "--samples-per-shard",
        "8",
    ]
    assert build.main(arguments) == 0
    transform = AttributedSquare(64)
    loader = make_loader(tmp_path / "out", transform, 10, rank=0, world_size=1, shuffle=False)
    batches = list(loader)
    scenes = sample_scenes(20, 7, start=5)
    drawn = render(scenes, 64).mul(255).round().to(torch.uint8)
    assert torch.equal(torch.cat([batch["pixels"] for batch in batches]), drawn)
    attributes = [row for batch in batches for row in batch["attributes"]]
    assert [row["shape"] for row in attributes] == [scenes.describe(index)["shape"] for index in range(20)]
    for row, described in enumerate(attributes):  # seed and number are enough to draw a scene again
        again = sample_scenes(1, described["seed"], described["number"])
        assert all(torch.equal(getattr(again, name)[0], getattr(scenes, name)[row]) for name in vars(scenes))


@pytest.fixture
def spoiled(pictures: Path) -> Path:
    """Three bad pictures among the nine good ones."""
    (pictures / "bad_html.jpg").write_text("<html>gone</html>")
    (pictures / "bad_empty.png").write_bytes(b"")
    data = (pictures / "a.jpg").read_bytes()
    (pictures / "sub" / "bad_cut.jpg").write_bytes(data[: len(data) // 2])
    return pictures


def test_bad_pictures_are_counted_and_named(spoiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["folder", str(spoiled), str(tmp_path / "out"), "--max-bad-rate", "0.25", "--samples-per-shard", "5"]
    assert build.main(arguments) == 0
    assert "3 bad pictures left out" in capsys.readouterr().out
    report = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    assert [row["source"] for row in report] == ["bad_empty.png", "bad_html.jpg", "sub/bad_cut.jpg"]
    assert all(row["reason"] for row in report)
    assert len(read(tmp_path / "out")) == 9
    assert read_manifest(tmp_path / "out").samples == 9


def test_too_many_bad_pictures_stop_the_build(spoiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["folder", str(spoiled), str(tmp_path / "out"), "--samples-per-shard", "5", "--max-bad-rate"]
    assert build.main([*arguments, "0.2"]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: 3 of 12 sources are bad (25.00%; `max_bad_rate` is 20.00%)")
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert len((tmp_path / "out" / "bad.jsonl").read_text().splitlines()) == 3
    assert build.main([*arguments, "0.3"]) == 0, "allowing more goes on from there"
    assert "3 shards, 0.1 MB, 3 of them from an earlier run" in capsys.readouterr().out


def test_a_shard_of_bad_pictures_only_is_left_out(tmp_path: Path):
    for number in range(6):
        save_image(tmp_path / "in" / f"{number}.png", seed=number)
    for number in (2, 3):
        (tmp_path / "in" / f"{number}.png").write_bytes(b"rubbish")
    arguments = [
        "folder",
        str(tmp_path / "in"),
        str(tmp_path / "out"),
        "--max-bad-rate",
        "1",
        "--samples-per-shard",
        "2",
    ]
    for _ in range(2):
        assert build.main(arguments) == 0
        assert [shard.name for shard in read_manifest(tmp_path / "out").shards] == ["00000.tar", "00002.tar"]


WORLD = ["--count", "60", "--samples-per-shard", "7", "--size", "16"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folder", "{tmp}/none", "{tmp}/out"], "does not exist"),
        (["folder", "{tmp}", "{tmp}/out"], "lies in the folder that is read"),
        (["folder", "{tmp}/file", "{tmp}/out"], "is a file"),
        (["folder", "{tmp}/empty", "{tmp}/out"], "no pictures were found"),
        (["list", "{tmp}/none", "{tmp}/out"], "is no file"),
        (["list", "{tmp}/urls", "{tmp}/out"], "use img2dataset"),
        (["list", "{tmp}/binary", "{tmp}/out"], "not UTF-8"),
        (["world", "{tmp}/out", "--count", "0"], "`count`=0"),
        (["world", "{tmp}/out", "--count", "5", "--size", "4"], "`size`=4"),
        (["world", "{tmp}/out", "--count", "5", "--samples-per-shard", "0"], "`samples_per_shard`=0"),
        (["world", "{tmp}/out", "--count", "5", "--max-bad-rate", "7"], "`max_bad_rate`=7"),
        (["world", "{tmp}/out", "--count", "5", "--workers", "-1"], "`workers`=-1"),
        (["world", "{tmp}/file", "--count", "5"], "File exists"),
        (["index", "{tmp}/empty"], "no .tar files"),
        (["verify", "{tmp}/empty"], "No such file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("x")
    (tmp_path / "urls").write_text("https://host/a.png\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert build.main([argument.replace("{tmp}", str(tmp_path)) for argument in arguments]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert sorted(tmp_path.rglob("*")) == before, "nothing was written"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard-size", "big"], "'big' is not a size such as 500M"),
        (["--shard-size", "0"], "`shard_bytes`=0"),
        (["--size", "0"], "`size`=0"),
        (["--size", "x"], "'x' is neither `keep` nor a number of pixels"),
        (["--quality", "0"], "`quality`=0"),
        (["--quality", "101"], "`quality`=101"),
        (["--max-pixels", "0"], "`max_pixels`=0"),
        (["--encode", "bmp"], "jpeg"),
        (["--workers", "many"], "many"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(
    arguments: list[str], message: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert build.main(["folder", str(pictures), str(tmp_path / "out"), *arguments]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "out").exists()


def test_a_size_may_be_pixels_or_keep(pictures: Path, tmp_path: Path):
    for size, expected in (("keep", "keep"), ("16", 16)):
        assert build.main(["folder", str(pictures), str(tmp_path / size), "--size", size]) == 0
        assert read_manifest(tmp_path / size).settings["size"] == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("500", 500), ("1K", 1000), ("2MB", 2_000_000), ("1.5G", 1_500_000_000), ("1GiB", 2**30)]
)
def test_sizes_have_units(text: str, expected: int):
    assert build.byte_size(text) == expected


def test_verify_finds_every_kind_of_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    assert build.main(["world", str(out), *WORLD]) == 0
    assert build.main(["verify", str(out)]) == 0
    (out / "00000.tar").unlink()
    os.truncate(out / "00001.tar", 100)
    with (out / "00002.tar").open("r+b") as file:
        file.seek(700)
        file.write(b"\xff")
    capsys.readouterr()
    assert build.main(["verify", str(out)]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "3 of 9 shards are not as they were: 00000.tar is missing; 00001.tar has 100 bytes" in message
    assert "00002.tar has another sha256" in message


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"samples": 6}, "00000.tar has 7 samples instead of 6"),
        ({"samples": 9}, "00000.tar has 7 samples instead of 9"),
        ({"bytes": None, "sha256": None}, "bytes instead of 0"),
        ({"sha256": None}, "00000.tar has another sha256"),
    ],
)
def test_verify_does_not_bless_a_manifest_that_was_edited(
    tmp_path: Path, change: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert build.main(["world", str(out), "--count", "14", "--size", "16", "--samples-per-shard", "7"]) == 0
    found = read_manifest(out)
    first, second = found.shards
    write_manifest(out, replace(found, shards=(replace(first, **change), second)))
    assert build.main(["verify", str(out)]) == 2
    assert told in capsys.readouterr().err


def test_index_gives_foreign_shards_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    assert build.main(["world", str(out), *WORLD]) == 0
    before = read_manifest(out).shards
    for path in out.glob("*.json"):
        path.unlink()
    assert build.main(["index", str(out)]) == 0
    assert "60 samples in 9 shards" in capsys.readouterr().out
    assert read_manifest(out).shards == before
    assert build.main(["verify", str(out)]) == 0


def test_debug_shows_the_traceback(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        build.main(["folder", str(tmp_path / "none"), str(tmp_path / "out"), "--debug"])


def test_file_names_that_are_no_text_are_shown_escaped(tmp_path: Path):
    folder = tmp_path / "in"
    folder.mkdir()
    save_image(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", os.fsencode(folder) + b"/\xff.png")
    assert build.main(["folder", str(folder), str(tmp_path / "out")]) == 0
    assert read(tmp_path / "out")[0][0]["source"] == "\\xff.png"


def test_held_out_pictures_lie_apart(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["folder", str(pictures), str(tmp_path / "out"), "--held-out", "2"]
    for _ in range(2):  # the second run finds both as it left them
        assert build.main(arguments) == 0
        output = capsys.readouterr().out
        assert "done: 7 samples" in output
        assert "done: 2 samples" in output
    names = [{about["source"] for about, _ in read(tmp_path / name)} for name in ("out", "out_held_out")]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 9
    assert build.main([*arguments[:-1], "9"]) == 2
    assert "`held_out`=9" in capsys.readouterr().err


def test_index_and_verify_name_what_they_pass_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    out = tmp_path / "out"
    assert build.main(["world", str(out), "--count", "6", "--size", "16", "--samples-per-shard", "2"]) == 0
    for path in [*out.glob("*.json"), *out.glob(".*")]:
        path.unlink()
    (out / "00002.tar").rename(tmp_path / "later")
    (out / "._00001.tar").write_bytes(b"x")
    capsys.readouterr()
    assert build.main(["index", str(out)]) == 0
    assert "._00001.tar" in caplog.text
    shown = capsys.readouterr().out
    assert "written, with what is named above: 4 samples in 2 shards" in shown
    assert "done" not in shown
    (tmp_path / "later").rename(out / "00002.tar")
    assert build.main(["verify", str(out)]) == 2
    assert "00002.tar is not in the manifest" in capsys.readouterr().err
    (out / "._00001.tar").unlink()
    assert build.main(["index", str(out)]) == 0
    assert "done: 6 samples in 3 shards" in capsys.readouterr().out
    assert build.main(["verify", str(out)]) == 0


def test_index_and_verify_name_shards_in_folders_below(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    for place in ("out", "out/more"):
        (tmp_path / place).mkdir()
        assert build.main(["world", str(tmp_path / place), "--count", "2", "--size", "16"]) == 0
        (tmp_path / place / "manifest.json").unlink()
    capsys.readouterr()
    for command in ("index", "verify"):
        caplog.clear()
        assert build.main([command, str(tmp_path / "out")]) == 0
        assert str(tmp_path / "out" / "more") in caplog.text
    assert "written, with what is named above: 2 samples" in capsys.readouterr().out


def test_pairs_of_the_world_are_built(tmp_path: Path):
    assert build.main(["world", str(tmp_path / "out"), "--count", "3", "--size", "16", "--pairs", "moved"]) == 0
    manifest = read_manifest(tmp_path / "out")
    assert manifest.members == ("json", "png", "reference.png")
    assert manifest.settings["pairs"] == "moved"
    assert build.main(["world", str(tmp_path / "other"), "--count", "3", "--pairs", "turned"]) == 2
