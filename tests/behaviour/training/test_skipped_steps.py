"""A step whose loss is NaN is left out, and too many in a row end the run."""

from seecoder.export.run_folder import list_checkpoints
from train.stages.seecoder import SeeCoderStage


def test_a_poisoned_sample_costs_its_step_only(settings, fit, monkeypatch, load, tmp_path):
    original = SeeCoderStage.loss
    monkeypatch.setattr(
        SeeCoderStage,
        "loss",
        lambda self, batch: original(self, batch) * (float("nan") if self.global_step == 1 else 1),
    )
    assert fit(settings(**{"run.max_steps": 3})) == 0
    checkpoint = load(tmp_path / "run" / "step-00000003.ckpt")
    assert checkpoint["guard"]["skipped"] == 1
    assert all(bool(value.isfinite().all()) for value in checkpoint["state_dict"].values())
    assert (tmp_path / "run" / "skipped_steps.jsonl").read_text().count("\n") == 1


def test_endless_nan_stops_the_run_with_the_checkpoint_from_before(settings, fit, monkeypatch, capsys, tmp_path):
    original = SeeCoderStage.loss
    monkeypatch.setattr(
        SeeCoderStage,
        "loss",
        lambda self, batch: original(self, batch) * (float("nan") if self.global_step >= 2 else 1),
    )
    guard = {"max_skipped_in_a_row": 1}
    assert fit(settings(**{"run.checkpoint_every": 2, "stage.init_args.guard": guard})) == 1
    assert "in a row" in capsys.readouterr().err
    assert list_checkpoints(tmp_path / "run")[0][0] == 2
