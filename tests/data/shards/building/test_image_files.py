"""Image files as a source: what is found, what is noticed, what is bad."""

from pathlib import Path

import pytest

from data import build
from data.shards.building.image_files import ImageFiles, find_image_files, printable_name, read_image_list
from tests.fixtures.shards import save_image


def test_changed_sources_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pictures = tmp_path / "pictures"
    for number, name in enumerate(("a.png", "b.png")):
        save_image(pictures / name, seed=number)
    assert build.main(["folder", str(pictures), str(tmp_path / "out")]) == 0
    save_image(pictures / "b.png", seed=99)
    assert build.main(["folder", str(pictures), str(tmp_path / "out")]) == 2
    assert "sources_sha256" in capsys.readouterr().err


def test_loops_of_links_are_not_followed(tmp_path: Path):
    save_image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "b.png").symlink_to(tmp_path / "in" / "a.png")
    assert [path.name for path in find_image_files(tmp_path / "in")[0]] == ["a.png", "b.png"]


def test_a_list_may_name_files_that_are_gone(tmp_path: Path):
    save_image(tmp_path / "a.png")
    (tmp_path / "list").write_text("a.png\ngone.png\n")
    paths = read_image_list(tmp_path / "list")
    source = ImageFiles.from_paths(paths, [path.name for path in paths], None, "jpeg", 95, 10**6)
    assert [bool(item.reason) for item in source.samples(0, 2)] == [False, True]


def test_names_that_are_no_text_are_escaped():
    assert printable_name("a é.png") == "a é.png"
    assert printable_name(b"\xff.png".decode("utf-8", "surrogateescape")) == "\\xff.png"


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"size": 0}, "`size`=0"), ({"quality": 101}, "`quality`=101"), ({"max_pixels": 0}, "`max_pixels`=0")],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, int], message: str):
    settings = {"size": None, "encode": "jpeg", "quality": 95, "max_pixels": 100}
    with pytest.raises(ValueError, match=message):
        ImageFiles.from_paths([], [], **(settings | changes))  # type: ignore[arg-type]
