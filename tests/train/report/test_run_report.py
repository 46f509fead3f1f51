import base64
import json
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping

import pytest

from seecoder.export.run_folder import list_checkpoints
from train.cli import main
from train.report import run_report
from train.report.run_report import Line, line_chart
from train.run.metrics_file import read_metrics


@pytest.mark.heavy
def test_a_run_leaves_report_card_versions_scores_and_its_best_checkpoint(settings, fit, tmp_path, monkeypatch):
    preview = {"pictures": 2, "rows": 2, "steps": 2, "guidance_scale": 1.0}
    changes = {"run.max_steps": 6, "run.keep_checkpoints": 1, "stage.init_args.preview": preview}
    best = {2: 0.2, 4: 0.1, 6: 0.3}
    from train.stages.seecoder import SeeCoderStage

    monkeypatch.setattr("train.run.provenance.commit", lambda: {"commit": "c" * 40, "changed": True})
    monkeypatch.setattr(SeeCoderStage, "evaluate", lambda stage: {"held_out_loss": best[stage.global_step]})
    assert fit(settings(**changes)) == 0
    run = tmp_path / "run"
    assert [step for step, _ in list_checkpoints(run)] == [6, 4]
    assert json.loads((run / "best.json").read_text())["checkpoint"] == "step-00000004.ckpt"
    found = read_metrics(run / "metrics.csv")
    for name in ("count", "shape", "hue", "texture", "background", "all"):
        assert all(0 <= value <= 1 for _, value in found[f"preview_{name}"])
    assert all(0 <= value <= 1 for _, value in found["data_wait"])
    assert found["skipped_steps"][-1] == found["skipped_samples"][-1] == (6, 0.0)
    (start,) = json.loads((run / "run.json").read_text())["starts"]
    assert (start["step"], start["processes"]) == (0, 1)
    assert {key: start[key] for key in ("commit", "changed")} == {"commit": "c" * 40, "changed": True}
    assert start["versions"]["torch"]
    card = (run / "README.md").read_text()
    assert "| steps | 6 of 6 |" in card
    assert "seecoder export" in card

    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    for word in ("loss by noise level", "gradient norm", "learning rate", "images a second", "waits for data"):
        assert word in page
    assert page.count("data:image/png;base64,") == 3
    assert page.count("data:image/svg+xml;base64,") >= 8
    assert "step-00000004.ckpt: held_out_loss 0.1" in page
    assert "max_steps: 6" in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing from outside


def test_a_report_of_a_run_that_has_barely_begun(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,metric,value\n")
    (tmp_path / "skipped_steps.jsonl").write_text('{"step": 1, "samples": ["<script>"]}\n')
    (tmp_path / "run.json").write_text('{"starts": [{}, {"pictures": "3 of 8 pictures are enlarged"}]}')
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "pages" / "a.html")]) == 0
    page = (tmp_path / "pages" / "a.html").read_text()
    assert "<script>" not in page
    assert "Skipped steps: 1" in page
    assert "<th>pictures</th><td>3 of 8 pictures are enlarged</td>" in page


def test_weighted_and_unweighted_losses_are_never_in_one_chart(tmp_path, monkeypatch):
    names = ("loss", "held_out_loss", "held_out_loss_no_context", "loss_level_1")
    (tmp_path / "metrics.csv").write_text("".join(f"1,{name},0.5\n" for name in names))
    charts = []
    monkeypatch.setattr(run_report, "line_chart", lambda title, lines, **_: charts.append((title, set(lines))) or "")
    run_report.write_report(tmp_path)
    (weighted,) = [(title, lines) for title, lines in charts if "loss" in lines]
    assert "weighted" in weighted[0]
    assert weighted[1] == {"loss"}
    assert all("not weighted" in title for title, lines in charts if lines != {"loss"})


def svg(lines: Mapping[str, Line], *, logarithmic: bool = False) -> ElementTree.Element:
    """The picture inside a chart, which must be whole XML, drawn without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = line_chart("t & <u>", lines, logarithmic=logarithmic)
    assert "<figcaption>t &amp; &lt;u&gt;</figcaption>" in figure
    (content,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', figure)
    return ElementTree.fromstring(base64.b64decode(content))


def texts(root: ElementTree.Element) -> list[str]:
    return ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]


def points(root: ElementTree.Element) -> list[int]:
    """Points of each line of data, the only paths that are cut to the axes."""
    paths = root.iter("{http://www.w3.org/2000/svg}path")
    data = [path for path in paths if "clip-path" in path.attrib and "#ddd" not in path.get("style", "")]
    return [len(re.findall("[ML]", path.get("d", ""))) for path in data]


@pytest.mark.parametrize("logarithmic", [False, True])
def test_what_cannot_be_drawn_is_left_out_and_said_where_nothing_is_left(logarithmic):
    nothing = {"none": [], "bad": [(1, float("nan")), (2, float("inf"))]}
    assert "nothing recorded yet" in texts(svg(nothing, logarithmic=logarithmic))
    some = texts(svg({**nothing, "one": [(3, 2.0)], "flat": [(1, 5.0), (2, 5.0)]}, logarithmic=logarithmic))
    assert {"one", "flat", "step"} <= set(some)
    assert not {"nothing recorded yet", "none", "bad"} & set(some)


def test_names_are_text_and_no_formulas():
    assert {"a<b>&", "$\\frac$"} <= set(texts(svg({"a<b>&": [(1, 1.0), (2, 2.0)], "$\\frac$": [(1, 1.0), (2, 3.0)]})))


def test_a_long_line_is_averaged_to_a_few_hundred_points():
    jagged = [(step, float(step % 7)) for step in range(5000)]
    (count,) = points(svg({"many": jagged}))
    assert 100 < count <= 600


def test_the_same_lines_give_the_same_file():
    assert line_chart("t", {"a": [(1, 1.0), (2, 4.0)]}) == line_chart("t", {"a": [(1, 1.0), (2, 4.0)]})
