"""`encode`, `export`, `import` and `info` on tiny files."""

import hashlib
import json

import pytest
import torch

from seecoder import SeeCoder
from seecoder.cli import main
from seecoder.encoder.context import load_context
from seecoder.export.trained_part import TrainedEncoder, tensors_sha256, write_trained
from seecoder.images.loading import load_image


@pytest.fixture
def released(build, tmp_path):
    """A released file of tiny size, plain or position-aware, and the sizes that it needs."""

    def make(position_aware=False):
        encoder = build["encoder"](position_aware=position_aware)
        file = tmp_path / f"released-{position_aware}.safetensors"
        encoder.save_official(file)
        sizes = tmp_path / "sizes.json"
        config = {key: value for key, value in encoder.config.items() if key != "position_aware"}
        sizes.write_text(json.dumps(config))
        return encoder, file, sizes

    return make


@pytest.fixture
def checkpoint(tiny_encoder, encoder_folder, tmp_path):
    """What training leaves: the trained part, and the place of the backbone."""
    state = tiny_encoder.state_dict()
    own = {key: value for key, value in state.items() if not key.startswith("backbone.")}
    config = {key: value for key, value in tiny_encoder.config.items() if not key.startswith("_")}
    trained = TrainedEncoder(
        config, own, {key: value * 1.5 for key, value in own.items()}, str(encoder_folder),
        tensors_sha256(tiny_encoder.backbone.state_dict()), {"step": "250"},
    )  # fmt: skip
    write_trained(tmp_path / "trained.safetensors", trained)
    return tmp_path / "trained.safetensors"


def info_of(path, capsys):
    capsys.readouterr()
    assert main(["info", str(path), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_encode_keeps_every_picture(pictures, encoder_folder, tiny_encoder, tmp_path, capsys):
    out = tmp_path / "deep" / "contexts.safetensors"
    arguments = ["encode", *pictures, "--encoder", str(encoder_folder), "--device", "cpu", "--out"]
    assert main([*arguments, str(out)]) == 0
    saved = load_context(out)
    with torch.no_grad():
        expected = torch.cat([tiny_encoder(load_image(path)[None]) for path in pictures])
    assert torch.equal(saved.context, expected)
    assert json.loads(saved.metadata["sources"]) == pictures
    assert info_of(out, capsys)["shape"] == [2, 6, 32]
    assert main([*arguments, str(out)]) == 2  # it is there already
    together = tmp_path / "together.safetensors"
    assert main([*arguments, str(together), "--together", "--weights", "1", "3"]) == 0
    torch.testing.assert_close(load_context(together).context, 0.25 * expected[:1] + 0.75 * expected[1:])
    assert main([*arguments, str(tmp_path / "contexts.pt")]) == 2
    assert main(["encode", pictures[0], "--encoder", str(out), "--out", str(tmp_path / "x.safetensors")]) == 2


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
    assert "| step | 250 |" in card
    assert main(["export", str(checkpoint), str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    assert SeeCoder.from_pretrained(tmp_path / "half", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_export_the_best_of_a_run(checkpoint, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    command = ["export", str(run), str(tmp_path / "out"), "--best"]
    assert main(command) == 2
    assert "has no best.json" in capsys.readouterr().err
    (run / "best.json").write_text(json.dumps({"step": 20, "checkpoint": "step-00000020.safetensors"}))
    assert main(command) == 2
    assert "is not there" in capsys.readouterr().err
    best = run / "step-00000020.safetensors"
    best.write_bytes(checkpoint.read_bytes())
    best.with_name(best.name + ".sha256").write_text(hashlib.sha256(checkpoint.read_bytes()).hexdigest())
    assert main(command) == 0
    assert "step-00000020" in capsys.readouterr().err
    assert main(["export", str(checkpoint), str(tmp_path / "other"), "--best"]) == 2
    assert "needs the folder of a run" in capsys.readouterr().err


def test_export_changes_the_form_of_a_complete_encoder(encoder_folder, tmp_path, capsys):
    assert main(["export", str(encoder_folder), str(tmp_path / "a.safetensors"), "--format", "official"]) == 0
    facts = info_of(tmp_path / "a.safetensors", capsys)
    assert facts["kind"] == "released SeeCoder layout"
    assert facts["variant"] == "plain"
    assert main(["export", str(encoder_folder), str(tmp_path / "b"), "--backbone", "x"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "64", "64"], "no effect without `--format onnx`"),
        (["--backbone", "gone.safetensors"], "is not there"),
    ],
)
def test_bad_exports_write_nothing(checkpoint, options, message, tmp_path, capsys):
    assert main(["export", str(checkpoint), str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("position_aware", [False, True])
def test_import_a_released_file(released, position_aware, tmp_path, capsys):
    encoder, file, sizes = released(position_aware)
    assert main(["import", str(file), str(tmp_path / "out"), "--config", str(sizes)]) == 0
    shown = capsys.readouterr().err
    assert ("position-aware" in shown) == position_aware
    assert f"{len(encoder.state_dict())} tensors" in shown
    again = SeeCoder.from_pretrained(tmp_path / "out")
    pixels = torch.rand(1, 3, 40, 48)
    with torch.no_grad():
        assert torch.equal(again(pixels), encoder(pixels))
    again.save_official(tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == file.read_bytes()


def test_pickles_need_permission(released, tmp_path, capsys):
    from safetensors.torch import load_file

    encoder, file, sizes = released()
    pickle = tmp_path / "released.pth"
    torch.save(load_file(file), pickle)
    arguments = ["import", str(pickle), str(tmp_path / "out"), "--config", str(sizes)]
    assert main(arguments) == 2
    assert "--allow-pickle" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--allow-pickle"]) == 0
    assert SeeCoder.from_pretrained(tmp_path / "out").config["context_dim"] == encoder.config["context_dim"]


def test_code_in_a_pickle_is_not_run_even_with_permission(tmp_path, capfd):
    import os

    class Evil:
        def __reduce__(self):
            return os.system, ("echo ran",)

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    assert main(["import", str(tmp_path / "evil.pth"), str(tmp_path / "out"), "--allow-pickle"]) == 2
    assert "ran\n" not in capfd.readouterr().out
    assert not (tmp_path / "out").exists()


def test_import_of_something_else(tmp_path, capsys):
    (tmp_path / "a.json").write_text("[1")
    (tmp_path / "a.safetensors").write_bytes(b"nonsense")
    assert (
        main(["import", str(tmp_path / "a.safetensors"), str(tmp_path / "out"), "--config", str(tmp_path / "a.json")])
        == 2
    )
    assert "is not JSON" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "a.safetensors"), str(tmp_path / "out")]) == 2
    assert main(["import", str(tmp_path / "gone"), str(tmp_path / "out")]) == 2


def test_info_of_an_encoder(encoder_folder, tiny_encoder, capsys):
    facts = info_of(encoder_folder, capsys)
    assert facts["kind"] == "SeeCoder"
    assert facts["variant"] == "plain"
    assert facts["tensors"] == len(tiny_encoder.state_dict())
    floats = [value for value in tiny_encoder.state_dict().values() if value.is_floating_point()]
    assert facts["parameters"] == sum(value.numel() for value in floats)
    assert facts["dtype"].startswith("F32")
    assert len(facts["sha256"]) == 64
    assert facts["config"]["context_dim"] == "32"
    assert main(["info", str(encoder_folder)]) == 0
    assert "config.context_dim" in capsys.readouterr().out


def test_info_of_other_things(checkpoint, base_folder, tmp_path, capsys):
    assert info_of(checkpoint, capsys)["kind"] == "seecoder.trained"
    facts = info_of(base_folder, capsys)
    assert facts["kind"] == "StableDiffusionPipeline"
    assert facts["unet"]["kind"] == "UNet2DConditionModel"
    (tmp_path / "text.safetensors").write_text("hello, this is no file of weights")
    assert main(["info", str(tmp_path / "text.safetensors")]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["info", str(tmp_path / "empty")]) == 2
    assert "holds no safetensors files" in capsys.readouterr().err
