"""`seecoder info` says what files and folders of weights are."""

from seecoder.cli import main


def test_info_of_an_encoder(encoder_folder, tiny_encoder, info_of, capsys):
    facts = info_of(encoder_folder)
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


def test_info_of_other_things(checkpoint, base_folder, tmp_path, info_of, capsys):
    assert info_of(checkpoint)["kind"] == "training checkpoint"
    facts = info_of(base_folder)
    assert facts["kind"] == "StableDiffusionPipeline"
    assert facts["unet"]["kind"] == "UNet2DConditionModel"
    (tmp_path / "text.safetensors").write_text("hello, this is no file of weights")
    assert main(["info", str(tmp_path / "text.safetensors")]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["info", str(tmp_path / "empty")]) == 2
    assert "holds no safetensors files" in capsys.readouterr().err
