"""`seecoder eval` measures pictures, and says early and in one line what it cannot."""

import json

import pytest

from data.world.render import render
from data.world.scenes import sample_scenes
from seecoder.cli import main
from seecoder.cli.eval_ import table
from seecoder.images.saving import save_image


@pytest.fixture
def inputs(tmp_path):
    """Six scenes of the world with their attributes."""
    scenes = sample_scenes(6, 0)
    (tmp_path / "inputs").mkdir()
    for number, pixels in enumerate(render(scenes, 64)):
        save_image(pixels, tmp_path / "inputs" / f"scene {number}.png")
        (tmp_path / "inputs" / f"scene {number}.json").write_text(json.dumps(scenes.describe(number)))
    return tmp_path / "inputs"


def write(folder, names, seed=0):
    folder.mkdir(parents=True)
    for name, pixels in zip(names, render(sample_scenes(6, seed), 64), strict=False):
        save_image(pixels, folder / name)
    return folder


def test_variations_are_measured_against_their_inputs(inputs, tmp_path, capsys):
    names = [f"{number:04d}-scene-{number}-seed0.png" for number in range(5)]
    generated = write(tmp_path / "out", [*names, "broken.png"])
    (generated / "broken.png").write_bytes((generated / "broken.png").read_bytes()[:99])
    arguments = ["eval", str(generated), str(inputs), "--world", "--device", "cpu", "--json"]
    assert main([*arguments, str(tmp_path / "deep" / "scores.json")]) == 0
    shown = capsys.readouterr()
    assert "broken.png is left out" in shown.err
    assert "1 pictures match none by name: scene 5.png" in shown.err
    result = json.loads((tmp_path / "deep" / "scores.json").read_text())
    found = {row["metric"]: row for row in result["scores"]}
    assert found["similarity"]["value"] == pytest.approx(1)
    assert found["fid"]["remark"].startswith("no more pictures than the 128 features")
    assert found["all"]["value"] == 1  # by what is written beside the inputs
    assert shown.out.splitlines()[0].split() == ["metric", "network", "value", "±", "n", "reference"]
    assert shown.out.count("\n") == len(result["scores"]) + 1
    assert main([*arguments, str(tmp_path / "deep" / "scores.json")]) == 2  # it is there already


def test_of_a_run_the_newest_variations_are_measured(tmp_path, capsys):
    write(tmp_path / "run" / "variations" / "inputs", ["0.png", "1.png"])
    write(tmp_path / "run" / "variations" / "step-00000010", ["0001-0-seed0.png"], seed=9)
    write(tmp_path / "run" / "variations" / "step-00000020", ["0001-0-seed0.png", "0002-1-seed0.png"])
    assert main(["eval", str(tmp_path / "run"), "--json", str(tmp_path / "x.json"), "--device", "cpu"]) == 0
    result = json.loads((tmp_path / "x.json").read_text())
    assert (result["pairs"], result["unmatched"]) == (2, [])
    (row,) = [row for row in result["scores"] if row["metric"] == "map_distance"]
    assert row["value"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "`nowhere` does not exist; give a place on this machine, also with --network."),
        ([".", "nowhere"], "`nowhere` does not exist"),
        ([".", "--network", "openai/clip"], "`openai/clip` does not exist"),
        ([".", "--device", "tpu"], "`--device`='tpu' is not a device"),
        ([".", "--max-pixels", "0"], "`--max-pixels`=0 must be a whole number from 1 up."),
        (["."], "`.` has no pictures"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(arguments, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["eval", *arguments]) == 2
    shown = capsys.readouterr().err.strip()
    assert shown.startswith(f"seecoder eval: {told}")
    assert "\n" not in shown


def test_columns_of_the_table_stand_under_each_other():
    row = {"network": "n", "metric": "kid", "value": 1 / 3, "error": None, "count": 5, "reference": 2.0, "remark": "so"}
    assert table([row]).splitlines() == [
        "metric  network  value   ±  n  reference",
        "kid     n        0.3333     5  2          so",
    ]
