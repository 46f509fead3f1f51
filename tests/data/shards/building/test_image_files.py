"""Image files as a source: what is found, what is noticed, what is bad."""

from pathlib import Path

import pytest

from data import build
from data.shards.building.image_files import ImageFiles
from data.shards.manifest import read_manifest
from tests.fixtures.shards import save_image


def test_changed_sources_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pictures = tmp_path / "pictures"
    for number, name in enumerate(("a.png", "b.png")):
        save_image(pictures / name, seed=number)
    assert build.main(["folder", str(pictures), str(tmp_path / "out")]) == 0
    save_image(pictures / "b.png", seed=99)
    assert build.main(["folder", str(pictures), str(tmp_path / "out")]) == 2
    assert "sources_sha256" in capsys.readouterr().err


def test_pictures_below_the_smallest_size_are_bad(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, width in (("tiny.png", 9), ("small.png", 30), ("right.png", 40)):
        save_image(tmp_path / "in" / name, 50, width)
    arguments = ["folder", str(tmp_path / "in"), str(tmp_path / "out"), "--size", "40"]
    assert build.main(arguments) == 0
    assert "min_side" not in read_manifest(tmp_path / "out").settings, "builds of earlier versions go on"
    arguments = ["folder", str(tmp_path / "in"), str(tmp_path / "less"), "--size", "40", "--min-side", "30"]
    assert build.main(arguments) == 2
    assert "1 of 3 sources are bad" in capsys.readouterr().err
    assert build.main([*arguments, "--max-bad-rate", "0.5"]) == 0
    assert "1 bad pictures left out (1 x its shorter side has less than N pixels)" in capsys.readouterr().out
    assert "tiny.png" in (tmp_path / "less" / "bad.jsonl").read_text()
    assert read_manifest(tmp_path / "less").settings["min_side"] == 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "`size`=0"),
        ({"quality": 101}, "`quality`=101"),
        ({"max_pixels": 0}, "`max_pixels`=0"),
        ({"min_side": 0}, "`min_side`=0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, int], message: str):
    settings = {"size": None, "encode": "jpeg", "quality": 95, "max_pixels": 100}
    with pytest.raises(ValueError, match=message):
        ImageFiles.from_paths([], [], **(settings | changes))  # type: ignore[arg-type]
