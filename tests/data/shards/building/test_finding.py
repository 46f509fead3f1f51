"""Which files a build reads, and that nothing is passed over without a word."""

import codecs
import os
from pathlib import Path

import pytest

from data import build
from data.shards.building.finding import find_image_files, printable_name, read_image_list, split_held_out
from data.shards.building.image_files import ImageFiles
from tests.fixtures.shards import picture, save_image


def names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in find_image_files(folder)[0]]


def test_linked_folders_are_followed_each_once(tmp_path: Path):
    folder = tmp_path / "in"
    for name in ("in/b/1.png", "far/2.png", "far/deep/3.png"):
        save_image(tmp_path / name)
    (folder / "a").symlink_to(folder / "b")  # comes before the folder by its name
    (folder / "far").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "back").symlink_to(folder)
    (tmp_path / "far" / "self").symlink_to(".")
    assert names(folder) == ["b/1.png", "far/2.png", "far/deep/3.png"]
    (note,) = find_image_files(folder)[1]
    assert note.startswith("3 linked folders lead to folders that are read anyway, such as ")


def test_a_folder_that_is_a_link_is_read(tmp_path: Path):
    save_image(tmp_path / "real" / "a.png")
    (tmp_path / "in").symlink_to(tmp_path / "real")
    assert names(tmp_path / "in") == ["a.png"]


def test_links_to_nowhere_are_bad_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "in"
    save_image(folder / "a.png")
    for name in ("gone.jpg", "gone_folder"):
        (folder / name).symlink_to(tmp_path / "nowhere")
    (folder / "circle").symlink_to("circle")
    assert build.main(["folder", str(folder), str(tmp_path / "out")]) == 2
    assert "3 of 4 sources are bad" in capsys.readouterr().err
    assert build.main(["folder", str(folder), str(tmp_path / "out"), "--max-bad-rate", "1"]) == 0
    report = (tmp_path / "out" / "bad.jsonl").read_text()
    assert all(f'"{name}"' in report for name in ("gone.jpg", "gone_folder", "circle"))


def test_a_folder_that_cannot_be_listed_is_bad_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_image(tmp_path / "in" / "a.png")
    save_image(tmp_path / "in" / "closed" / "b.png")
    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert names(tmp_path / "in") == ["a.png", "closed"]
    assert "closed` cannot be read (Permission denied) and counts as bad" in find_image_files(tmp_path / "in")[1][0]


def test_what_is_no_picture_is_counted_by_kind(tmp_path: Path):
    save_image(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"\0\x05\x16\x07" + bytes(100))
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    for name in ("a.txt", "b.TXT", "Thumbs.db"):
        (tmp_path / name).write_text("no picture")
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(40))
    (tmp_path / "raw.nef").write_bytes(b"MM\0\x2a" + bytes(40))
    os.mkfifo(tmp_path / "pipe")
    assert names(tmp_path) == ["a.png"]
    (note,) = find_image_files(tmp_path)[1]
    assert note.startswith(f"8 files in {tmp_path} are no pictures, or hidden, and are left out (2 x .txt, ")
    assert all(f"1 x {kind}" in note for kind in ("._*", ".DS_Store", ".db", ".mp4", ".nef", "pipe"))


def test_pictures_in_waste_baskets_and_thumbnails_are_left_out_with_a_word(tmp_path: Path):
    for name in (".Trash-1000/files/a.png", ".ipynb_checkpoints/b.png", "@eaDir/c.jpg/small.png", ".trashed-1-d.png"):
        save_image(tmp_path / ".photos" / name)
    save_image(tmp_path / ".photos" / "a.b" / "kept.png")
    files, (note,) = find_image_files(tmp_path / ".photos")
    assert [path.name for path in files] == ["kept.png"]
    for kind in (".Trash-1000", ".ipynb_checkpoints", "@eaDir", ".trashed-1-d.png"):
        assert f"1 x {kind}" in note


def test_pictures_are_known_by_all_their_suffixes_or_by_content(tmp_path: Path):
    for name in ("a.JPG", "b.jfif", "c.HEIC", "d.avif", "e.tiff", "f.Mpo"):
        (tmp_path / name).write_bytes(b"whatever")
    assert names(tmp_path) == sorted(["a.JPG", "b.jfif", "c.HEIC", "d.avif", "e.tiff", "f.Mpo"])
    for name, kind in (("0123abcd", "JPEG"), ("x.jpg_large", "JPEG"), ("._really", "WEBP"), ("y", "PNG"), ("z", "GIF")):
        (tmp_path / name).write_bytes(picture(1, encoding=kind))
    (tmp_path / "w").write_bytes(b"\0\0\0\x20ftypheic")
    files, notes = find_image_files(tmp_path)
    assert len(files) == 12
    assert notes[0].startswith("6 files are taken for what they hold, not for their names, such as ")


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    for name in ("a.jpg", "#b.jpg", " c.jpg ", "sub/d.jpg", "e\u2028f.jpg", "caf\u00e9.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture(1))
    return tmp_path / "list.txt"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ],
)
def test_lists_of_every_editor_are_read(listed: Path, end: str, mark: bytes, encoding: str):
    lines = [
        "a.jpg",
        "#b.jpg",
        " c.jpg ",
        "sub\\d.jpg",
        "e\u2028f.jpg",
        "cafe\u0301.jpg",
        "",
        "# a comment: https://host",
    ]
    listed.write_bytes(mark + end.join(lines).encode(encoding))
    files, notes = read_image_list(listed)
    wanted = ["a.jpg", "#b.jpg", " c.jpg ", "sub/d.jpg", "e\u2028f.jpg", "caf\u00e9.jpg"]
    assert files == [listed.parent / name for name in wanted]
    assert notes == [f"1 lines of {listed} begin with # and name no file: they are comments"]


def test_blanks_quotes_and_marks_around_a_name_are_forgiven(listed: Path):
    lines = ["  a.jpg\t", '"a.jpg"', "'sub/d.jpg'", "\ufeffa.jpg"]
    listed.write_text("\n".join(lines), encoding="utf-8")
    files, notes = read_image_list(listed)
    assert [path.name for path in files] == ["a.jpg", "a.jpg", "d.jpg", "a.jpg"]
    assert notes == [f"2 lines of {listed} name a picture again; it is taken again"]


def test_notes_of_a_mac_in_a_list_are_left_out_and_counted(listed: Path):
    (listed.parent / "._a.jpg").write_bytes(b"\0\x05\x16\x07")
    listed.write_text("a.jpg\n._a.jpg\n")
    files, notes = read_image_list(listed)
    assert [path.name for path in files] == ["a.jpg"]
    assert notes == [f"1 lines of {listed} name what a Mac notes about pictures (._*), and are left out"]


def test_utf16_without_a_mark_and_addresses_are_refused(listed: Path):
    listed.write_bytes("a.jpg\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"it holds zeros\. Save it as UTF-8"):
        read_image_list(listed)
    listed.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not UTF-8 text, nor UTF-16"):
        read_image_list(listed)
    listed.write_text("https://host/a.jpg\n")
    with pytest.raises(ValueError, match=r"line 1: `https://host/a\.jpg` is not a local path"):
        read_image_list(listed)


def test_a_list_may_name_files_that_are_gone(listed: Path):
    listed.write_text("a.jpg\ngone.jpg\n" + "x" * 300 + ".jpg\n")
    paths, _ = read_image_list(listed)
    source = ImageFiles.from_paths(
        paths, [path.name for path in paths], size=None, encode="jpeg", quality=95, max_pixels=10**6
    )
    assert [bool(item.reason) for item in source.samples(0, 3)] == [False, True, True]


def test_names_that_are_no_text_are_escaped():
    assert printable_name("a é.png") == "a é.png"
    assert printable_name(b"\xff.png".decode("utf-8", "surrogateescape")) == "\\xff.png"


def test_held_out_files_are_the_same_ones_whatever_they_are_called(tmp_path: Path):
    paths = [save_image(tmp_path / f"{number}.png", seed=number) for number in range(20)]
    paths += [save_image(tmp_path / f"copy{number}.png", seed=number) for number in range(20)]
    training, held_out = split_held_out(paths, 3)
    assert sorted(training + held_out) == list(range(40))
    assert len(held_out) == 6
    assert [number - 20 for number in held_out[3:]] == held_out[:3]
    again = [path.rename(tmp_path / f"new{number}.png") for number, path in enumerate(paths)]
    assert split_held_out(again, 3) == (training, held_out)
    assert split_held_out(paths, 0) == (list(range(40)), [])


def test_what_cannot_be_read_is_held_out_last(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    paths = [tmp_path / "pipe.png", save_image(tmp_path / "a.png"), tmp_path / "gone.png"]
    assert split_held_out(paths, 1) == ([0, 2], [1])
    for count in (-1, 3):
        with pytest.raises(ValueError, match=f"`held_out`={count}"):
            split_held_out(paths, count)


def test_pictures_that_are_all_one_leave_nothing_to_hold_out(tmp_path: Path):
    paths = [save_image(tmp_path / f"{number}.png", seed=0) for number in range(12)]
    with pytest.raises(ValueError, match=r"`held_out`=1 must be from 0 up and below 1, the different pictures here\."):
        split_held_out(paths, 1)
