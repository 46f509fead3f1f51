import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest

from scripts.evaluation.highres import Row
from scripts.evaluation.highres_report import Report, described, factor_name, fingerprint, kept, parsed_factor, table


@pytest.mark.parametrize(("name", "factor"), [("2", (2, 2)), ("3x", (3, 3)), ("4x1", (1, 4)), (" 1X2 ", (2, 1))])
def test_sizes_by_name(name, factor):
    assert parsed_factor(name) == factor
    assert parsed_factor(factor_name(factor)) == factor


@pytest.mark.parametrize("name", ["", "x", "2y", "0", "2x0", "-1", "1.5"])
def test_other_sizes_are_refused(name):
    with pytest.raises(ValueError, match="--factors"):
        parsed_factor(name)


def test_a_cell_is_kept_until_its_settings_or_its_count_change(tmp_path):
    path = tmp_path / "out" / "table.json"
    mark = fingerprint(steps=50, row=["a"])
    Report(path).put("cells", "2x", "plain", {"count": 0.5, "pictures": 8, "fingerprint": mark})
    report = Report(path)
    assert report.has("cells", "2x", "plain", mark, 8)
    assert not report.has("cells", "2x", "plain", mark, 9)
    assert not report.has("cells", "2x", "plain", fingerprint(steps=30, row=["a"]), 8)
    assert not report.has("cells", "3x", "plain", mark, 8)
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".table.json.lock", "table.json"]


def fill(path: Path, process: int) -> None:
    report = Report(path)
    report.describe(steps=5, commands=[f"run {process}"])
    for cell in range(20):
        report.put("cells", "2x", f"{process} {cell}", {"pictures": 1})


def test_processes_that_fill_one_report_lose_no_cell(tmp_path):
    path = tmp_path / "table.json"
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        list(pool.map(partial(fill, path), range(3)))
    content = Report(path).content
    assert len(content["cells"]["2x"]) == 60
    assert sorted(content["about"]["commands"]) == ["run 0", "run 1", "run 2"]


def test_a_row_is_described_alike_in_every_process():
    assert described((fill, 3)) == "(<function fill>, 3)"


def test_something_else_is_no_report(tmp_path):
    path = tmp_path / "table.json"
    for text in ("{", "[]", json.dumps({"cells": {}})):
        path.write_text(text)
        with pytest.raises(ValueError, match="no report"):
            Report(path)


def test_markdown_has_rows_in_order_and_squares_first(tmp_path):
    report = Report(tmp_path / "table.json")
    for group in ("2x1", "4x", "2x"):
        for label in ("b", "a"):
            report.put("cells", group, label, {"count": 0.987, "objects": 1.25, "windows": 1113.6, "pictures": 128})
    text = report.markdown([Row("a"), Row("b")])
    assert [line for line in text.splitlines() if line.startswith("#")] == ["### 2x", "### 4x", "### 2x1"]
    rows = [line for line in text.splitlines() if line.startswith(("| a", "| b"))]
    assert rows[0].startswith("| a | 98.7 |  | 1.25 |")
    assert "| 1114 |" in rows[0]
    assert len(rows) == 6


def test_what_was_not_measured_stays_empty():
    assert table({"a": {}}, {"count": "one object %"}, ["a"]).splitlines()[-1] == "| a |  |"


def test_objects_are_kept_of_pictures_whose_native_sample_has_one(tmp_path):
    assert kept([1, 2, 1, 1], [1, 1, 2, 1]) == 2 / 3
    assert kept([1, 1], []) is None
    assert kept([1, 1], [0, 2]) is None
    report = Report(tmp_path / "table.json")
    report.put("cells", "1x", "plain", {"count": 1.0, "each": [1, 1, 2, 1], "pictures": 4})
    report.put("cells", "2x", "DemoFusion", {"count": 0.75, "each": [1, 2, 1, 1], "pictures": 4})
    report.put("cells", "2x", "of earlier", {"count": 0.5, "pictures": 4})
    lines = [[cell.strip() for cell in line.split("|")] for line in report.markdown([]).splitlines()]
    values = {line[1]: line[2:4] for line in lines if len(line) > 3}
    assert values["DemoFusion"] == ["75.0", "66.7"]
    assert values["of earlier"] == ["50.0", ""]
