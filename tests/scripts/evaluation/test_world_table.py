import json
import sys

from scripts.evaluation import world_table


def test_two_scenes_make_a_table(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["world_table.py", "--out", str(tmp_path), "--count", "2", "--steps", "2"])
    world_table.main()
    measured = json.loads((tmp_path / "measured.json").read_text())
    names = ["reconstruction, 64", "sampled, 64", "sampled without the layout, 64", "plain sampling, 128"]
    assert list(measured["rows"]) == names
    assert measured["rows"]["reconstruction, 64"]["psnr"] > 25
    assert "| reconstruction, 64 |" in capsys.readouterr().out
