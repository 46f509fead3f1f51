import json
import sys

import pytest
import torch

from data.world.conditioner import ENCODERS
from scripts.evaluation import highres_table


def test_a_second_run_keeps_the_cells_of_the_first(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        sys,
        "argv",
        [
            *("highres_table.py", "--out", str(tmp_path), "--rows", "plain", "--factors", "1"),
            *("--count", "1", "--steps", "2"),
        ],
    )
    highres_table.main()
    first = (tmp_path / "table.json").read_bytes()
    assert list(json.loads(first)["cells"]["1x"]) == ["plain"]
    assert (tmp_path / "sheet.png").is_file()
    highres_table.main()
    assert (tmp_path / "table.json").read_bytes() == first
    assert "| plain |" in capsys.readouterr().out


def test_an_unknown_row_is_refused_before_anything_is_loaded(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["highres_table.py", "--out", str(tmp_path), "--rows", "StretchCrafter"])
    with pytest.raises(SystemExit) as ended:
        highres_table.main()
    assert ended.value.code == 2
    assert "stretchcrafter" in capsys.readouterr().err


@pytest.mark.parametrize("told", ["layout", "attributes", str(ENCODERS / "plain")])
def test_the_network_is_told_of_scenes_by_tokens_or_pictures(monkeypatch, tmp_path, told):
    contexts = []

    def noted(row, pipeline, scenes, context, sampling):
        contexts.append(context)
        return torch.zeros(1, 3, 64, 64), {"one": 1.0}

    monkeypatch.setattr(highres_table, "measure", noted)
    words = ["highres_table.py", "--out", str(tmp_path), "--rows", "plain", "--factors", "1", "--count", "1"]
    monkeypatch.setattr(sys, "argv", [*words, "--context", told])
    highres_table.main()
    if told in ("layout", "attributes"):
        assert (contexts[0].abs().amax(dim=(0, 2)) == 0).tolist() == [False] * 4 + [told == "attributes"]
    else:
        assert contexts[0].shape[1] == 12  # tokens of the encoder
    monkeypatch.setattr(sys, "argv", [*words, "--context", "attributes" if told == "layout" else "layout"])
    highres_table.main()  # a cell of another context is none of this one's
    assert len(contexts) == 2
    monkeypatch.setattr(sys, "argv", [*words, "--context", str(ENCODERS / "plain"), "--panoramas", "1"])
    with pytest.raises(SystemExit):
        highres_table.main()


def test_panoramas_are_told_neither_background_nor_layout(monkeypatch, tmp_path):
    contexts = []

    def noted(row, pipeline, scenes, context, sampling):
        contexts.append(context)
        assert (sampling.height, sampling.width) == (64, 256)
        return torch.zeros(1, 3, 64, 256), {"seam": 1.0}

    monkeypatch.setattr(highres_table, "measure", noted)
    words = ["highres_table.py", "--out", str(tmp_path), "--rows", "MultiDiffusion, open", "--panoramas"]
    monkeypatch.setattr(sys, "argv", [*words, "1"])
    highres_table.main()
    dropped = contexts[0].abs().amax(dim=(0, 2)) == 0
    assert dropped.tolist() == [False, False, False, True, True]
    found = json.loads((tmp_path / "table.json").read_text())
    assert found["cells"] == {}
    assert found["panoramas"]["4x1"]["MultiDiffusion, open"]["seam"] == 1.0
    monkeypatch.setattr(sys, "argv", [*words, "0"])
    with pytest.raises(SystemExit):
        highres_table.main()
