import json
from pathlib import Path

from scripts.results import markdown, versions, write_json


def test_versions_name_what_is_not_installed():
    found = versions("torch", "no-such-package")
    assert found["no-such-package"] == "none"
    assert found["torch"].startswith("2.")


def test_results_are_kept_whole_and_in_new_folders(tmp_path: Path):
    write_json(tmp_path / "new" / "out.json", {"rows": [1]})
    assert json.loads((tmp_path / "new" / "out.json").read_text()) == {"rows": [1]}
    write_json(None, {"rows": [1]})


def test_missing_cells_stay_empty_and_numbers_are_short():
    text = markdown([{"a": 1234.5678, "b": None}, {"a": 3}], ("a", "b"))
    assert text.splitlines() == ["| a | b |", "|---|---|", "| 1.23e+03 |  |", "| 3 |  |"]
