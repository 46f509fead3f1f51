"""`seecoder info` says what files and folders of weights are."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from seecoder.cli import main
from seecoder.images.saving import save_image, to_pil
from tests.fixtures.single_files import write_checkpoint


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


def test_info_of_a_base_in_one_file(build, tmp_path, info_of):
    parts = {"model.diffusion_model.": build["unet"](in_channels=9), "first_stage_model.": build["vae"]()}
    facts = info_of(write_checkpoint(tmp_path / "base.safetensors", parts))
    assert (facts["kind"], facts["parts"], facts["family"]) == ("checkpoint in one file", "unet, vae", "SD 1.x")
    assert (facts["inpainting"], facts["predicts"], facts["average"]) == ("yes", "epsilon", "no")
    assert facts["context width"] == 32
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    assert info_of(tmp_path / "lora.safetensors")["kind"] == "a LoRA; `--lora` takes it"
    save_file({"x": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    assert info_of(tmp_path / "other.safetensors")["kind"] == "safetensors"


def test_what_is_no_file_of_weights_is_said_without_advice(picture, tmp_path, capsys):
    save_image(to_pil(picture), tmp_path / "picture.png")
    assert main(["info", str(tmp_path / "picture.png")]) == 2
    assert "picture.png` is no file of weights; give safetensors or" in capsys.readouterr().err
    torch.save({"x": Path("x")}, tmp_path / "x.ckpt")
    assert main(["info", str(tmp_path / "x.ckpt")]) == 2
    said = capsys.readouterr().err
    assert "Unsupported global: GLOBAL pathlib" in said
    assert "weights_only" not in said
    assert "add_safe_globals" not in said
