import json
import sys

import pytest

from data.world.conditioner import ENCODERS
from scripts.evaluation import evaluate_encoder


@pytest.mark.heavy
def test_an_encoder_stands_beside_chance_and_the_ceiling(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        sys,
        "argv",
        [
            *("evaluate_encoder.py", "--encoder", str(ENCODERS / "plain"), "--out", str(tmp_path)),
            *("--count", "4", "--steps", "8"),
        ],
    )
    evaluate_encoder.main()
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    names = ["variation by plain", "true attribute tokens (ceiling)", "the same without the layout token"]
    assert list(rows) == [*names, "variation by plain, against other inputs (chance)"]
    assert rows["true attribute tokens (ceiling)"]["excess loss (x1e-3)"] == 0.0
    assert "| variation by plain |" in capsys.readouterr().out
