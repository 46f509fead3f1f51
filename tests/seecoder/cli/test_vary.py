"""`seecoder vary` and `seecoder panorama` write pictures, a sheet and settings, or nothing."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image

from seecoder import SeeCoderPipeline
from seecoder.cli import main, vary
from seecoder.encoder.context import load_context
from seecoder.images import gate, masks
from seecoder.images.gate import load_image, read_pixels
from seecoder.images.saving import save_image
from tests.fixtures.picture_files import pixels_of, size_of, write_mask

LARGE = ["--height", "32", "--width", "32", "--guidance", "3", "--sheet", ""]


def test_pictures_sheet_and_settings(pictures, networks, base_folder, tiny_encoder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["vary", *pictures, *networks, "--out", str(out), "--seed", "3", "--count", "2"]) == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == [
        "0001-first-one-seed3.png",
        "0001-first-one-seed4.png",
        "0002-second-seed3.png",
        "0002-second-seed4.png",
        "settings.json",
        "sheet.png",
    ]
    settings = json.loads((out / "settings.json").read_text())
    assert [(entry["file"], entry["seed"]) for entry in settings["pictures"]][1] == ("0001-first-one-seed4.png", 4)
    assert settings["options"]["guidance"] == 2.0
    shown = capsys.readouterr().err
    assert "4 pictures of 16x16" in shown
    # The command is the pipeline.
    pipe = SeeCoderPipeline.from_base(base_folder, encoder=tiny_encoder)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(pictures[0], num_inference_steps=2, generator=torch.Generator().manual_seed(4)).images[0]
    assert pixels_of(out / "0001-first-one-seed4.png") == pixels_of(expected)


def test_together_with_weights_and_strength(pictures, networks, base_folder, tiny_encoder, tmp_path):
    out = tmp_path / "out"
    options = ["--together", "--weights", "3", "1", "--context-scale", "0.5", "--sheet", "", "--scheduler", "DDIM"]
    assert main(["vary", *pictures, *networks, "--out", str(out), *options]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["0001-together-seed0.png", "settings.json"]
    pipe = SeeCoderPipeline.from_base(base_folder, encoder=tiny_encoder)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        [pictures],
        context_weights=[3, 1],
        context_scale=0.5,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert pixels_of(out / "0001-together-seed0.png") == pixels_of(expected)


def test_cached_contexts_stand_for_the_encoder(pictures, networks, base_folder, tmp_path):
    contexts = str(tmp_path / "contexts.safetensors")
    encoder = networks[networks.index("--encoder") + 1]
    assert main(["encode", *pictures, "--encoder", encoder, "--device", "cpu", "--out", contexts]) == 0
    assert main(["vary", *pictures, *networks, "--out", str(tmp_path / "a")]) == 0
    cached = ["--base", str(base_folder), "--encoder", contexts, "--device", "cpu", "--steps", "2"]
    assert main(["vary", *cached, "--out", str(tmp_path / "b")]) == 0
    for first, second in (("0001-first-one-seed0", "0001-context-seed0"), ("0002-second-seed0", "0002-context-seed0")):
        assert pixels_of(tmp_path / "a" / f"{first}.png") == pixels_of(tmp_path / "b" / f"{second}.png")
    assert main(["vary", pictures[0], *cached, "--out", str(tmp_path / "c")]) == 2


def test_the_size_at_which_the_encoder_sees_pictures(pictures, networks, tmp_path):
    encoder = networks[networks.index("--encoder") + 1]
    contexts = {}
    for size in ("own", "512", "32"):
        file = tmp_path / f"{size}.safetensors"
        options = ["--encoder", encoder, "--device", "cpu", "--out", str(file), "--image-size", size]
        assert main(["encode", pictures[0], *options]) == 0
        contexts[size] = load_context(file).context
        assert main(["vary", pictures[0], *networks, "--out", str(tmp_path / size), "--image-size", size]) == 0
    assert torch.equal(contexts["own"], contexts["512"])
    assert not torch.equal(contexts["own"], contexts["32"])
    files = {size: pixels_of(tmp_path / size / "0001-first-one-seed0.png") for size in contexts}
    assert files["own"] == files["512"] != files["32"]
    assert main(["vary", pictures[0], *networks, "--out", str(tmp_path / "x"), "--image-size", "big"]) == 2


def test_methods_and_their_settings(pictures, networks, tmp_path, capsys):
    out = tmp_path / "out"
    large = ["--height", "32", "--width", "48", "--method", "MultiDiffusion", "--method-option", "stride=4"]
    sheet = tmp_path / "sheets" / "one.png"
    assert main(["vary", pictures[0], *networks, *large, "--out", str(out), "--sheet", str(sheet)]) == 0
    assert size_of(out / "0001-first-one-seed0.png") == (32, 48)
    assert sheet.is_file()
    assert main(["vary", pictures[0], *networks, "--out", str(tmp_path / "x"), "--method", "magic"]) == 2
    assert "choose from" in capsys.readouterr().err


@pytest.mark.heavy
def test_large_pictures_are_made_by_the_preset_auto(pictures, networks, base_folder, tiny_encoder, tmp_path, capsys):
    large = ["--height", "32", "--width", "32", "--steps", "8", "--sheet", ""]
    made = {}
    for name, method in (("default", []), ("auto", ["--method", "Auto"]), ("plain", ["--method", "plain"])):
        assert main(["vary", pictures[0], *networks, *large, *method, "--out", str(tmp_path / name)]) == 0
        made[name] = pixels_of(tmp_path / name / "0001-first-one-seed0.png")
        shown = capsys.readouterr().err
        chosen = "--method auto: scalecrafter,rectifiedhr switch_at=(0.85,), about 22 native-sized windows a picture"
        assert (chosen in shown) == (name != "plain")
    assert made["default"] == made["auto"] != made["plain"]
    options = json.loads((tmp_path / "default" / "settings.json").read_text())["options"]
    assert (options["method"], options["method_option"]) == ("scalecrafter,rectifiedhr", [["switch_at", [0.85]]])
    pipe = SeeCoderPipeline.from_base(base_folder, encoder=tiny_encoder)
    pipe.set_progress_bar_config(disable=True)
    common = {"height": 32, "width": 32, "num_inference_steps": 8, "generator": torch.Generator().manual_seed(0)}
    assert made["auto"] == pixels_of(pipe(pictures[0], method="auto", **common).images[0])
    command = ["vary", pictures[0], *networks, *large, "--method", "best", "--method-option", "stride=4"]
    assert main([*command, "--out", str(tmp_path / "x")]) == 2
    assert "`--method-option` stride has no effect without `--method`" in capsys.readouterr().err


def test_stages_on_the_way(pictures, networks, tmp_path, capsys):
    out = tmp_path / "out"
    large = ["--height", "48", "--width", "48", "--method", "demofusion", "--sheet", ""]
    command = ["vary", pictures[0], *networks, *large, "--out", str(out), "--previews"]
    assert main(command) == 0
    name = "0001-first-one-seed0"
    sizes = {path.name: size_of(path) for path in out.glob("*.png")}
    assert sizes == {f"{name}-stage1.png": (16, 16), f"{name}-stage2.png": (32, 32), f"{name}.png": (48, 48)}
    (out / f"{name}.png").unlink()
    (out / "settings.json").unlink()
    assert main(command) == 2
    assert "stage" in capsys.readouterr().err


def test_a_region_follows_a_picture_of_its_own(pictures, networks, tmp_path):
    name, windows = "0001-first-one-seed0.png", ["--method", "multidiffusion", "--method-option", "bootstrap=0"]
    everywhere = write_mask(tmp_path / "everywhere.png", left=1.0, right=1.0)
    right = write_mask(tmp_path / "right.png", left=0.0, right=1.0)
    made = {
        "first": (pictures[0], []),
        "second": (pictures[1], []),
        "all": (pictures[0], ["--region", f"{everywhere}={pictures[1]}"]),
        "half": (pictures[0], ["--region", f"{right}={pictures[1]}"]),
    }
    for folder, (picture, region) in made.items():
        out = ["--out", str(tmp_path / folder), "--sheet", "", "--guidance", "7"]
        assert main(["vary", picture, *networks, *windows, *region, *out]) == 0
    (second,) = (tmp_path / "second").glob("*.png")
    assert pixels_of(tmp_path / "all" / name) == pixels_of(second)
    assert pixels_of(tmp_path / "half" / name) not in (pixels_of(second), pixels_of(tmp_path / "first" / name))
    settings = json.loads((tmp_path / "half" / "settings.json").read_text())
    assert settings["options"]["region"] == [[right, pictures[1]]]


@pytest.mark.parametrize(
    ("method", "region", "message"),
    [
        ("demofusion", "{white}={picture}", "needs `--method multidiffusion`"),
        ("multidiffusion", "{black}={picture}", "is black everywhere"),
        ("multidiffusion", "nowhere.png={picture}", "nowhere.png"),
        ("multidiffusion", "{white}=nowhere.png", "nowhere.png"),
    ],
)
def test_regions_that_cannot_be(pictures, networks, tmp_path, capsys, method, region, message):
    white = write_mask(tmp_path / "white.png", left=1.0, right=1.0)
    black = write_mask(tmp_path / "black.png", left=0.0, right=0.0)
    pair = region.format(white=white, black=black, picture=pictures[1])
    out = tmp_path / "out"
    command = ["vary", pictures[0], *networks, "--method", method, "--region", pair, "--out", str(out)]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--region", "no-pair.png"])
    assert "is not MASK=PICTURE" in capsys.readouterr().err


def test_controlnet(pictures, networks, tiny_controlnet, tmp_path):
    tiny_controlnet.save_pretrained(tmp_path / "control")
    assert isinstance(ControlNetModel.from_pretrained(tmp_path / "control"), ControlNetModel)
    options = ["--controlnet", str(tmp_path / "control"), "--control-image", pictures[1]]
    assert main(["vary", pictures[0], *networks, *options, "--out", str(tmp_path / "a")]) == 0
    assert main(["vary", pictures[0], *networks, *options, "--control-scale", "0", "--out", str(tmp_path / "b")]) == 0
    name = "0001-first-one-seed0.png"
    assert pixels_of(tmp_path / "a" / name) != pixels_of(tmp_path / "b" / name)
    assert main(["vary", pictures[0], *networks, *options[:2], "--out", str(tmp_path / "c")]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "1", "2"], "no effect without `--together`"),
        (["--together", "--weights", "1"], "`--weights`=[1.0] must be one number from 0 up for each"),
        (["--together", "--weights", "1", "-1"], "`--weights`=[1.0, -1.0] must be one number from 0 up"),
        (["--concatenate"], "no effect without `--together`"),
        (["--together", "--concatenate", "--weights", "1", "2"], "no effect with `--concatenate`"),
        (["--seed", "1", "2", "--count", "3"], "contradicts"),
        (["--seed", "-1"], "`--seed`=-1 must be a whole number from 0 to"),
        (["--count", "0"], "`--count`=0 must be a whole number from 1 up"),
        (["--height", "17"], "`--height`=17 must be a positive multiple"),
        (["--width", "0"], "`--width`=0 must be a whole number from 1 up"),
        (["--steps", "0"], "`--steps`=0 must be a whole number from 1 up"),
        (["--guidance", "nan"], "`--guidance`=nan must be a number"),
        (["--guidance-rescale", "2"], "`--guidance-rescale`=2.0 must be a number from 0 to 1"),
        (["--control-scale", "inf"], "`--control-scale`=inf must be a number"),
        (["--view-batch", "0"], "`--view-batch`=0 must be a whole number from 1 up"),
        (["--autoencoder-memory", "0"], "`--autoencoder-memory`=0.0 must be a number above 0 or infinity"),
        (["--image-size", "31"], "`--image-size`=31 must be 'trained' or a whole number from 32 up"),
        (["--method-option", "stride=4"], "no effect without `--method`"),
        (["--method", "multidiffusion", "--method-option", "regions=x"], "`--method-option` regions is unknown"),
        (["--sheet", "sheet.exe"], "must end in .png"),
        (["--scheduler", "Magic"], "not a scheduler of diffusers"),
        (["--device", "abacus"], "is not a device"),
        (["--base", "nowhere/at/all"], "nowhere/at/all"),
        (["--encoder", "./nowhere"], "does not exist"),
    ],
)
def test_bad_input_writes_nothing(pictures, networks, options, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["vary", *pictures, *networks, "--out", str(out), *options]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert not out.exists()


def test_a_bad_picture_stops_everything_before_it_starts(pictures, networks, tmp_path, capsys):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"<html>not a picture</html>")
    out = tmp_path / "out"
    assert main(["vary", pictures[0], str(bad), *networks, "--out", str(out)]) == 2
    assert "bad.png" in capsys.readouterr().err
    assert not out.exists()


def test_files_are_not_overwritten_unasked(pictures, networks, tmp_path, capsys):
    arguments = ["vary", pictures[0], *networks, "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0


@pytest.mark.heavy
def test_each_picture_is_decoded_once(pictures, networks, tiny_controlnet, tmp_path, monkeypatch):
    """Whatever it serves for: a picture to vary, one of a region, the sheet, a mask, what the ControlNet sees."""
    control = str(tmp_path / "control.png")
    save_image(load_image(pictures[1]), control)
    decoded = []

    def counted(source, max_pixels):
        if isinstance(source, str):
            decoded.append(source)
        return read_pixels(source, max_pixels)

    for module in (gate, masks):
        monkeypatch.setattr(module, "read_pixels", counted)
    tiny_controlnet.save_pretrained(tmp_path / "control")
    mask = write_mask(tmp_path / "mask.png", left=0.0, right=1.0)
    options = ["--controlnet", str(tmp_path / "control"), "--control-image", control, "--count", "2"]
    windows = ["--method", "multidiffusion", "--region", f"{mask}={pictures[1]}"]
    assert main(["vary", *pictures, *networks, *options, *windows, "--out", str(tmp_path / "out")]) == 0
    assert sorted(decoded) == sorted([*pictures, mask, control])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sheet", "settings.json.png", "--seed", "3", "3"], "first-one-seed3.png` would be written 2 times"),
        (["--sheet", "0001-first-one-seed0.png"], "0001-first-one-seed0.png` would be written 2 times"),
        (["--sheet", "x" * 300 + ".png"], "is too long for the name of a file"),
        (["--sheet", "{folder}/there.png"], "there.png` is a folder"),
        (["--sheet", "{folder}/first one.png", "--overwrite"], "is an input"),
        (["--sheet", "{folder}/second.jpg/sheet.png"], "is a file; it cannot hold"),
        (["--sheet", "sheet.webp", "--count", "62"], "must have at most 16,383 a side"),
    ],
)
def test_results_that_could_not_be_written_are_refused_before_the_first_step(
    pictures, networks, tmp_path, capsys, monkeypatch, options, message
):
    monkeypatch.setattr(SeeCoderPipeline, "__call__", None)
    (tmp_path / "there.png").mkdir()
    given = [option.format(folder=tmp_path) for option in options]
    assert main(["vary", pictures[0], *networks, "--out", str(tmp_path / "out"), *given]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_said_before_the_first_step(pictures, networks, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(SeeCoderPipeline, "__call__", None)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=3 * 16 * 16 * 4 - 1))
    command = ["vary", *pictures, *networks, "--out", str(tmp_path / "out"), "--count", "2"]
    assert main(command) == 2
    assert "GiB free, and the results may take" in capsys.readouterr().err


def test_settings_are_written_even_if_the_sheet_fails(pictures, networks, tmp_path, capsys, monkeypatch):
    def fail(*given, **named):
        raise ValueError("no sheet today")

    monkeypatch.setattr("seecoder.images.sheet.contact_sheet", fail)
    assert main(["vary", pictures[0], *networks, "--out", str(tmp_path / "out")]) == 2
    assert "no sheet today" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["pictures"][0]["seed"] == 0


def test_a_result_larger_than_what_is_read_from_elsewhere_goes_on_the_sheet(tmp_path):
    """8193 x 8192 pixels are more than pictures that come in may have."""
    result = tmp_path / "result.png"
    Image.new("L", (8193, 8192), 128).save(result)
    vary._write_sheet(tmp_path / "sheet.png", [vary.Job("context", {}, [])], [0], [[result]])
    assert size_of(tmp_path / "sheet.png") == (256 + 16 + 12, 256 + 12)


def test_a_base_that_does_not_say_its_size_takes_the_one_that_is_asked_for():
    pipe = SimpleNamespace(unet={"cross_attention_dim": 1024}, vae_scale_factor=8)
    asked = SimpleNamespace(height=512, width=1024)
    assert vary.result_sizes(asked, pipe, 1) == ((512, 1024), (512, 1024))
    with pytest.raises(ValueError, match="give `height` and `width`"):
        vary.result_sizes(SimpleNamespace(height=512, width=None), pipe, 1)
    known = SimpleNamespace(unet={"sample_size": [8, 16]}, vae_scale_factor=8)
    assert vary.result_sizes(SimpleNamespace(height=None, width=None), known, 1) == ((64, 128), (64, 128))
    assert vary.result_sizes(SimpleNamespace(height=32, width=None), known, 4) == ((32, 128), (64, 128))


@pytest.mark.parametrize(
    "method", [[], ["--method", "demofusion"], ["--method", "multidiffusion", "--method-option", "jitter=1"]]
)
def test_a_picture_is_the_same_alone_and_in_a_batch(method, pictures, networks, tmp_path):
    """Two pictures and three seeds, with previews, at once and one by one: equal but for the rounding of one level."""
    command = ["vary", *pictures, *networks, *LARGE, *method, "--count", "3", "--previews"]
    for name, batch in (("alone", "1"), ("together", "6"), ("uneven", "4")):
        assert main([*command, "--batch", batch, "--out", str(tmp_path / name)]) == 0
    alone = {path.name: load_image(path).numpy() for path in (tmp_path / "alone").glob("*.png")}
    assert len(alone) == (6 if "multidiffusion" in method else 12)  # with what each first stage reached
    records = {name: json.loads((tmp_path / name / "settings.json").read_text())["pictures"] for name in ("alone",)}
    for name in ("together", "uneven"):
        found = {path.name: load_image(path).numpy() for path in (tmp_path / name).glob("*.png")}
        assert found.keys() == alone.keys()
        assert json.loads((tmp_path / name / "settings.json").read_text())["pictures"] == records["alone"]
        for file, pixels in found.items():
            assert np.abs(pixels - alone[file]).max() <= 1 / 255 + 1e-6


def test_the_size_of_a_batch_is_checked(pictures, networks, tmp_path, capsys):
    assert main(["vary", *pictures, *networks, "--batch", "0", "--out", str(tmp_path / "out")]) == 2
    assert "`--batch`=0 must be a whole number from 1 up" in capsys.readouterr().err
