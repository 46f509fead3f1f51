import json
import re

from seecoder.export.run_folder import list_checkpoints
from train.cli import main
from train.run.metrics_file import read_metrics


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
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "pages" / "a.html")]) == 0
    page = (tmp_path / "pages" / "a.html").read_text()
    assert "<script>" not in page
    assert "Skipped steps: 1" in page


def test_a_folder_that_is_no_run_is_bad_input(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "metrics.csv" in capsys.readouterr().err
