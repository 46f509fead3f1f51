"""What the command line names is opened: pictures, devices, encoders or contexts."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from seecoder.cli import main
from seecoder.cli.commands import build_parser
from seecoder.cli.opening import (
    encoded_side,
    files_of,
    load_encoder,
    load_pipeline,
    open_pictures,
    pick_device,
    pick_dtype,
)
from seecoder.encoder.context import save_context
from seecoder.images.gate import load_image
from seecoder.images.masks import load_mask
from seecoder.images.saving import save_image
from seecoder.images.scaling import limit_area
from tests.fixtures.single_files import write_checkpoint


def test_pictures_are_kept_as_they_are_needed(pictures):
    first, second = pictures
    arguments = Namespace(
        pictures=[first],
        control_image=[],
        adapter_image=[],
        ip_adapter_image=None,
        start_image=second,
        mask=second,
        region=[(second, first)],
        image_size=32,
        max_pixels=None,
        negative=[],
        reference_mask=[],
    )
    opened = open_pictures(arguments)
    assert list(opened.encoded) == list(opened.thumbnails) == [first]
    assert torch.equal(opened.encoded[first], limit_area(load_image(first), 32))
    assert max(opened.thumbnails[first].size) <= 256
    assert list(opened.whole) == [second]
    assert torch.equal(opened.whole[second], load_image(second))
    assert torch.equal(opened.masks[second], load_mask(second))


def test_pictures_are_reduced_to_what_the_encoder_was_trained_at(pictures, build, tmp_path):
    build["encoder"](image_size=40).save_pretrained(tmp_path / "new")
    arguments = Namespace(
        pictures=pictures[:1],
        control_image=[],
        adapter_image=[],
        ip_adapter_image=None,
        start_image=None,
        mask=None,
        region=[],
        negative=[],
        reference_mask=[],
        image_size="trained",
        max_pixels=None,
        encoder=str(tmp_path / "new"),
    )
    assert torch.equal(open_pictures(arguments).encoded[pictures[0]], limit_area(load_image(pictures[0]), 40))
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_text('{"_class_name": "SeeCoder"}')
    for source in (old, tmp_path / "nowhere", __file__):
        assert encoded_side(Namespace(encoder=str(source), image_size="trained")) == 512
    assert encoded_side(Namespace(encoder=str(old), image_size=None)) is None


def test_devices_and_their_dtypes():
    assert pick_dtype("auto", pick_device("cpu")) == torch.float32
    assert pick_dtype("auto", torch.device("cuda")) == torch.float16
    assert pick_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16


def test_an_encoder_or_contexts(encoder_folder, tmp_path):
    assert load_encoder(str(encoder_folder)).config["context_dim"] == 32
    file = str(tmp_path / "contexts.safetensors")
    save_context(file, torch.zeros(2, 6, 32))
    with pytest.raises(ValueError, match=r"contexts\.safetensors must be an encoder, not ready contexts"):
        load_encoder(file)
    with pytest.raises(FileNotFoundError, match=r"`encoder`=\./nowhere does not exist"):
        load_encoder("./nowhere")


def test_a_base_and_a_vae_in_one_file_are_opened(build, tmp_path, capsys):
    unet, vae = build["unet"](), build["vae"]()
    base = write_checkpoint(tmp_path / "base.safetensors", {"model.diffusion_model.": unet, "first_stage_model.": vae})
    with torch.no_grad():
        vae.decoder.conv_in.weight.zero_()
    other = write_checkpoint(tmp_path / "vae.safetensors", {"first_stage_model.": vae}, text=False)
    save_context(tmp_path / "contexts.safetensors", torch.zeros(1, 6, 32))
    options = {"base": base, "vae": other, "encoder": tmp_path / "contexts.safetensors", "out": tmp_path}
    options["prediction-type"] = "v_prediction"
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    pipe = load_pipeline(build_parser().parse_args(["vary", *words, "--device", "cpu"]))
    assert torch.equal(pipe.unet.conv_in.weight, unet.conv_in.weight)
    assert not pipe.vae.decoder.conv_in.weight.any()
    assert pipe.scheduler.config["prediction_type"] == "v_prediction"


def test_a_folder_stands_for_its_pictures_and_says_what_is_passed_over(pictures, tmp_path, capsys):
    folder = tmp_path / "in"
    (folder / "deeper").mkdir(parents=True)
    for name, source in (("b.jpg", pictures[0]), ("a.heic", pictures[1])):  # content decides, not the name
        (folder / name).write_bytes(Path(source).read_bytes())
    (folder / "notes.txt").write_text("hello")
    assert files_of([pictures[0], str(folder)]) == [pictures[0], str(folder / "a.heic"), str(folder / "b.jpg")]
    assert "2 pictures; passed over 2: deeper, notes.txt" in capsys.readouterr().err
    with pytest.raises(ValueError, match="is a folder without pictures"):
        files_of([str(folder / "deeper")])


def test_results_in_the_folder_of_their_inputs_are_no_inputs_of_a_second_run(pictures, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("cat.png", "0001-cat-seed0.png", "0001-cat-seed0-stage1.png"):
        (folder / name).write_bytes(Path(pictures[0]).read_bytes())
    assert files_of([str(folder)]) == [str(folder / "cat.png")]
    said = capsys.readouterr().err
    assert "1 pictures; passed over 2: 0001-cat-seed0-stage1.png, 0001-cat-seed0.png" in said


def test_the_limit_on_pixels_is_an_option(pictures, encoder_folder, tmp_path, capsys):
    encoding = ["--encoder", str(encoder_folder), "--out", str(tmp_path / "x.safetensors")]
    assert main(["encode", pictures[0], *encoding, "--max-pixels", "5"]) == 2
    assert "the limit is 5. Resize it, or pass a larger `--max-pixels`" in capsys.readouterr().err


def test_a_picture_too_small_is_named_before_anything_is_loaded(pictures, networks, encoder_folder, tmp_path, capsys):
    save_image(torch.rand(3, 16, 16), tmp_path / "icon.png")
    given = [*pictures, str(tmp_path / "icon.png"), "--out", str(tmp_path / "x.safetensors")]
    for command in (["vary", *given, *networks], ["encode", *given, "--encoder", str(encoder_folder)]):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()  # nothing of networks that are loaded
        assert "icon.png`: its 16 x 16 pixels are too few to encode" in line
