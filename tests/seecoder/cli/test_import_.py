"""`seecoder import` turns released files into folders."""

import json

import pytest
import torch
from safetensors.torch import load_file

from seecoder import SeeCoder, SeeCoderPipeline
from seecoder.cli import main
from tests.fixtures.pickles import write_evil_pickle
from tests.fixtures.single_files import write_checkpoint

UNET = "model.diffusion_model."


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
    encoder, file, sizes = released()
    pickle = tmp_path / "released.pth"
    torch.save(load_file(file), pickle)
    arguments = ["import", str(pickle), str(tmp_path / "out"), "--config", str(sizes)]
    assert main(arguments) == 2
    assert "--allow-pickle" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--allow-pickle"]) == 0
    assert SeeCoder.from_pretrained(tmp_path / "out").config["context_dim"] == encoder.config["context_dim"]


def test_code_in_a_pickle_is_not_run_even_with_permission(tmp_path):
    witness = tmp_path / "witness"
    write_evil_pickle(tmp_path / "evil.pth", witness, "zip")
    assert main(["import", str(tmp_path / "evil.pth"), str(tmp_path / "out"), "--allow-pickle"]) == 2
    assert not witness.exists()
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


@pytest.mark.parametrize("pickled", [False, True])
def test_a_base_in_one_file_becomes_a_folder(build, pickled, tmp_path, capsys):
    unet = build["unet"](use_linear_projection=True).half()
    file = write_checkpoint(tmp_path / "base.safetensors", {UNET: unet, "first_stage_model.": build["vae"]()})
    arguments = ["import", str(file), str(tmp_path / "out"), "--prediction-type", "epsilon"]
    if pickled:
        arguments[1] = str(tmp_path / "base.ckpt")
        torch.save({"state_dict": load_file(file), "global_step": 3}, arguments[1])
        assert main(arguments) == 2
        assert "--allow-pickle" in capsys.readouterr().err
        arguments.append("--allow-pickle")
    assert main(arguments) == 0
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
    assert load_file(next((tmp_path / "out" / "unet").glob("*.safetensors")))["conv_in.weight"].dtype == torch.float16
    pipe = SeeCoderPipeline.from_base(tmp_path / "out")
    assert pipe.scheduler.config["prediction_type"] == "epsilon"
    assert torch.equal(pipe.unet.conv_in.weight, unet.conv_in.weight.float())
    assert main(arguments) == 2
    assert "exists; use --overwrite" in capsys.readouterr().err


def test_the_anime_variant_s_learned_negative_is_padded_with_zeros_and_kept(released, tmp_path, capsys):
    _, file, sizes = released()
    learned = torch.rand(4, 32, generator=torch.Generator().manual_seed(0))
    torch.save(learned, tmp_path / "anime_ug.pth")
    arguments = ["import", str(file), str(tmp_path / "out"), "--config", str(sizes)]
    arguments += ["--negative", str(tmp_path / "anime_ug.pth")]
    assert main(arguments) == 2
    assert "--allow-pickle" in capsys.readouterr().err
    assert main([*arguments, "--allow-pickle"]) == 0
    again = SeeCoder.from_pretrained(tmp_path / "out")
    assert again.negative_context is not None
    assert torch.equal(again.negative_context[0, :4], learned)
    assert again.negative_context.shape == (1, 6, 32)
    assert not again.negative_context[0, 4:].any()
    torch.save({"a": learned, "b": learned}, tmp_path / "anime_ug.pth")
    assert main([*arguments, "--allow-pickle", "--overwrite"]) == 2
    assert "holds 2 tensors" in capsys.readouterr().err


def test_options_of_the_other_kind_of_file_are_refused(released, build, tmp_path, capsys):
    _, file, sizes = released()
    out = str(tmp_path / "out")
    assert main(["import", str(file), out, "--config", str(sizes), "--prediction-type", "epsilon"]) == 2
    assert "`--prediction-type` has no effect" in capsys.readouterr().err
    base = write_checkpoint(tmp_path / "b.safetensors", {UNET: build["unet"](), "first_stage_model.": build["vae"]()})
    for option, value in (("--config", sizes), ("--negative", file)):
        assert main(["import", str(base), out, option, str(value)]) == 2
        assert f"`{option}` has no effect" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
