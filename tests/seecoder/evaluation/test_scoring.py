"""Evaluations as a whole, through a network whose features are the mean colours."""

import json

import pytest
import torch

from seecoder.evaluation.feature_networks import map_network
from seecoder.evaluation.scoring import evaluate
from seecoder.images.gate import ImageError
from seecoder.images.saving import save_image

COLOURS = map_network("colours", lambda pixels: [pixels], 4)


def draw(folder, names, size=(4, 4)):
    folder.mkdir()
    for number, name in enumerate(names):
        colour = torch.tensor([number / 10, 0.5, (7 * number % 5) / 5]).view(3, 1, 1)
        save_image(colour.expand(3, *size).contiguous(), folder / name)
    return [folder / name for name in names]


def rows(result):
    return {(row["network"], row["metric"]): row for row in result["scores"]}


@pytest.fixture
def reference(tmp_path):
    return draw(tmp_path / "reference", [f"{number}.png" for number in range(6)])


def test_a_set_against_itself_is_perfect(reference):
    result = evaluate(reference, reference, [COLOURS])
    found = rows(result)
    assert result["pairs"] == result["generated"] == result["reference"] == 6
    assert (result["unmatched"], result["bad"]) == ([], {})
    values = {metric: row["value"] for (network, metric), row in found.items() if network == "colours"}
    perfect = {"fid": 0, "precision": 1, "recall": 1, "similarity": 1, "map_distance": 0}
    assert {name: values[name] for name in perfect} == pytest.approx(perfect, abs=1e-6)
    assert found["", "spectrum"]["value"] == 0
    assert found["colours", "similarity"]["reference"] < 0.99  # beside other inputs
    assert found["colours", "fid"]["remark"] == ""  # six pictures, three features
    assert json.loads(json.dumps(result)) == result
    assert evaluate(reference, reference, [COLOURS]) == result


def test_larger_variations_are_compared_with_their_inputs(tmp_path, reference):
    names = [f"{number:04d}-{number}-seed{seed}.png" for number in range(3) for seed in (0, 1)]
    generated = draw(tmp_path / "generated", names, (8, 8))
    result = evaluate(generated, reference, [COLOURS])
    found = rows(result)
    assert result["pairs"] == 6
    assert result["unmatched"] == ["3.png", "4.png", "5.png"]
    assert found["colours", "map_distance"]["count"] == 6
    assert found["colours", "map_distance"]["error"] > 0


def test_bad_pictures_are_named_and_few_ones_have_no_distribution(tmp_path, reference):
    generated = draw(tmp_path / "generated", ["0.png", "1.png"])
    path = tmp_path / "generated" / "1.png"
    path.write_bytes(path.read_bytes()[:50])
    result = evaluate(generated, reference, [COLOURS])
    assert list(result["bad"]) == ["generated/1.png"]
    assert result["generated"] == 1
    assert ("colours", "fid") not in rows(result)
    assert rows(result)["colours", "similarity"]["error"] is None
    (tmp_path / "generated" / "0.png").write_bytes(path.read_bytes())
    with pytest.raises(ImageError, match="generated pictures`: none can be read; of the last, "):
        evaluate(generated, reference, [COLOURS])


def test_a_reader_is_told_the_paths_of_a_picture_and_its_input(tmp_path, reference):
    generated = draw(tmp_path / "generated", ["0.png"])
    seen = []

    def reader(pixels, paths):
        seen.append(paths)
        return {"files": float(len(paths))}

    found = rows(evaluate(generated, reference, reader=reader))
    assert (found["reader", "files"]["value"], found["reader", "files"]["reference"]) == (2, 1)
    assert seen[-1] == [generated[0], reference[0]]
    assert ("", "spectrum") not in rows(evaluate(generated, reader=reader))


def test_too_few_pictures_for_the_covariance_are_remarked(reference):
    wide = map_network("wide", lambda pixels: [pixels.repeat(1, 2, 1, 1)], 4)
    assert "singular" in rows(evaluate(reference, reference, [wide]))["wide", "fid"]["remark"]
