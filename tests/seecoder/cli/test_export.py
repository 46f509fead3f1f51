"""`seecoder export` makes what training wrote, or a complete encoder, ready to use."""

import json

import pytest
import torch

from seecoder import SeeCoder
from seecoder.cli import main
from seecoder.export.run_folder import marker_path
from seecoder.weights.digests import file_sha256


def test_export_a_checkpoint(checkpoint, tiny_encoder, tmp_path, capsys):
    assert main(["export", str(checkpoint), str(tmp_path / "ema")]) == 0
    assert "differ by 0" in capsys.readouterr().err
    assert main(["export", str(checkpoint), str(tmp_path / "last"), "--no-ema", "--license", "mit"]) == 0
    last, averaged = SeeCoder.from_pretrained(tmp_path / "last"), SeeCoder.from_pretrained(tmp_path / "ema")
    for key, value in tiny_encoder.state_dict().items():
        assert torch.equal(last.state_dict()[key], value)
        factor = 1.0 if key.startswith("backbone.") else 1.5
        torch.testing.assert_close(averaged.state_dict()[key], value * factor)
    card = (tmp_path / "last" / "README.md").read_text()
    assert "license: mit" in card
    assert "| weights | the last weights |" in card
    assert main(["export", str(checkpoint), str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    assert SeeCoder.from_pretrained(tmp_path / "half", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_export_the_best_of_a_run(checkpoint, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    command = ["export", str(run), str(tmp_path / "out"), "--best"]
    assert main(command) == 2
    assert "best.json` does not exist" in capsys.readouterr().err
    (run / "best.json").write_text(json.dumps({"step": 20, "checkpoint": "step-00000020.ckpt"}))
    assert main(command) == 2
    assert "does not exist" in capsys.readouterr().err
    best = run / "step-00000020.ckpt"
    best.write_bytes(checkpoint.read_bytes())
    marker_path(best).write_text(file_sha256(checkpoint))
    assert main(command) == 0
    assert "step-00000020" in capsys.readouterr().err
    assert main(["export", str(checkpoint), str(tmp_path / "other"), "--best"]) == 2
    assert "needs the folder of a run" in capsys.readouterr().err


def test_export_changes_the_form_of_a_complete_encoder(encoder_folder, tmp_path, info_of):
    assert main(["export", str(encoder_folder), str(tmp_path / "a.safetensors"), "--format", "official"]) == 0
    facts = info_of(tmp_path / "a.safetensors")
    assert facts["kind"] == "released SeeCoder layout"
    assert facts["variant"] == "plain"
    assert main(["export", str(encoder_folder), str(tmp_path / "b"), "--backbone", "x"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "64", "64"], "no effect without `--format onnx`"),
        (["--backbone", "gone.safetensors"], "does not exist"),
    ],
)
def test_bad_exports_write_nothing(checkpoint, options, message, tmp_path, capsys):
    assert main(["export", str(checkpoint), str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
