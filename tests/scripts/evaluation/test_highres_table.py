import json
import sys

import pytest

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
