"""Mistakes of a first hour: each is answered in one line, with exit code 2, before anything heavy is imported."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from seecoder.cli import main
from seecoder.cli.varying.early_checks import base_pixels, sheet_path

ROOT = Path(__file__).resolve().parents[4]
SCENE, WORLD = "data/world/encoders/scene.png", "data/world/base"
NETWORKS = ["--base", WORLD, "--encoder", "data/world/encoders/plain"]
VARY = ["vary", SCENE, *NETWORKS, "--out", "{out}/new"]
PANORAMA = ["panorama", *VARY[1:]]
TWO = ["vary", SCENE, SCENE, *NETWORKS, "--out", "{out}/new"]

MISTAKES = [
    # commands and options
    ([], "the following arguments are required: COMMAND. See seecoder --help."),
    (["varry"], "invalid choice: 'varry' (choose from"),
    (["vary"], "seecoder vary: the following arguments are required: --base, --encoder, --out."),
    (
        [*VARY, "--guidence", "3"],
        "`--guidence` is not understood; did you mean `--guidance`? See seecoder vary --help.",
    ),
    ([*VARY, "--guidence=3"], "`--guidence=3` is not understood; did you mean `--guidance`?"),
    ([*VARY, "--zzz", "3"], "`--zzz` is not understood. See seecoder vary"),
    (["info", "a", "b"], "seecoder info: `b` is not understood. See seecoder info --help."),
    ([*VARY, "--steps"], "argument --steps: expected one argument"),
    ([*VARY, "--dtype", "half"], "argument --dtype: invalid choice: 'half' (choose from"),
    # numbers
    ([*VARY, "--steps", "many"], "argument --steps: invalid int value: 'many'"),
    ([*VARY, "--steps", "0"], "`--steps`=0 must be a whole number from 1 up."),
    ([*VARY, "--guidance", "nan"], "`--guidance`=nan must be a number, or None."),
    ([*VARY, "--eta", "2"], "`--eta`=2.0 must be a number from 0 to 1."),
    ([*VARY, "--seed", "-1"], "`--seed`=-1 must be a whole number from 0 to"),
    ([*VARY, "--seed", "1", "2", "--count", "3"], "`--count`=3 contradicts the 2 seeds of `--seed`. Give one seed"),
    ([*VARY, "--count", "0"], "`--count`=0 must be a whole number from 1 up."),
    ([*VARY, "--batch", "0"], "`--batch`=0 must be a whole number from 1 up."),
    ([*VARY, "--max-pixels", "0"], "`--max-pixels`=0 must be a whole number from 1 up."),
    ([*VARY, "--view-batch", "0"], "`--view-batch`=0 must be a whole number from 1 up."),
    ([*VARY, "--height", "0"], "`--height`=0 must be a whole number from 1 up."),
    (
        [*VARY, "--height", "130"],
        "`--height`=130 must be a positive multiple of 4 (one latent cell is 4 pixels). Use 128",
    ),
    ([*VARY, "--image-size", "big"], "`--image-size`='big' must be 'trained' or a whole number from 32 up"),
    (["encode", SCENE, "--encoder", NETWORKS[3], "--out", "x.safetensors", "--image-size", "8"], "`--image-size`=8"),
    (["app", *NETWORKS, "--autoencoder-memory", "0"], "`--autoencoder-memory`=0.0 must be a number above 0"),
    ([*VARY, "--context-scale", "stile"], "`--context-scale`='stile' must be a number, 'style' or 'layout' or numbers"),
    ([*VARY, "--context-scale", "down=much"], "`--context-scale`='down=much' must be a number, 'style' or 'layout'"),
    ([*VARY, "--negative-text", "rain"], "`--negative-text` has no effect without `--text`; leave it out."),
    ([*VARY, "--negative-text", "rain", "--text", "sun", "--guidance", "1"], "`--negative-text` has no effect with"),
    (
        [*VARY, "--negative", SCENE, "--guidance", "1"],
        "`--negative` has no effect with `--guidance` 1 or less; use more.",
    ),
    (
        [*VARY, "--negative", SCENE, "--guidance", "0"],
        "`--negative` has no effect with `--guidance` 1 or less; use more.",
    ),
    ([*VARY, "--control-start", "0.5"], "`--control-start`=[0.5] must be one number for all 0 of `--controlnet`"),
    ([*VARY, "--adapter-scale", "1"], "`--adapter-scale`=[1.0] must be one number for all 0 of `--adapter`, or one"),
    (
        [*VARY, "--controlnet", WORLD, "--control-image", SCENE, "--control-scale", "1", "--control-scale", "2"],
        "`--control-scale`=[1.0, 2.0] must be one number for all 1 of `--controlnet`, or one each",
    ),
    ([*VARY, "--text-weight", "0.5"], "`--text-weight` has no effect without `--text`; leave it out."),
    ([*VARY, "--image-size", "8"], "`--image-size`=8 must be 'trained' or a whole number from 32 up"),
    ([*VARY, "--autoencoder-memory", "0"], "`--autoencoder-memory`=0.0 must be a number above 0 or infinity (in GiB)."),
    ([*VARY, "--weights", "1"], "`--weights` has no effect without `--together`."),
    (
        [*TWO, "--together", "--weights", "1"],
        "`--weights`=[1.0] must be one number from 0 up for each of the 2 pictures.",
    ),
    # names
    (
        [*VARY, "--method", "demofuson"],
        "`--method`='demofuson' does not exist; choose from plain, auto, fast, balanced,",
    ),
    ([*VARY, "--method", "auto,demofusion"], "`--method`='auto' does not exist; choose from"),
    ([*VARY, "--method", "demofusion", "--method-option", "strid=4"], "strid is unknown. Settings are demofusion: "),
    ([*VARY, "--method", "demofusion", "--method-option", "stride"], "'stride' is not key=value"),
    ([*VARY, "--method-option", "stride=4"], "stride has no effect without `--method`"),
    ([*VARY, "--device", "gpu"], "`--device`='gpu' is not a device; use auto, cpu, cuda, cuda:1 or mps."),
    ([*VARY, "--scheduler", "euler a"], "use one such as EulerAncestralDiscrete, EulerDiscrete."),
    ([*VARY, "--scheduler", "dpm++ 2m karras"], "use one such as DPMSolver"),
    ([*VARY, "--scheduler", "DDIN"], "`--scheduler`='DDIN' is not a scheduler of diffusers; use one such as DDIM."),
    (["app", *NETWORKS, "--port", "0"], "`--port`=0 must be a whole number from 1 to 65535."),
    (["app", *NETWORKS, "--max-side", "0"], "`--max-side`=0 must be a whole number from 1 up."),
    ([*PANORAMA, "--method", "demofusion"], "`--method`='demofusion' makes no panoramas; use syncdiffusion,"),
    ([*VARY, "--region", "mask.png"], "'mask.png' is not MASK=PICTURE"),
    ([*VARY, "--region", f"{SCENE}={SCENE}"], "`--region` needs `--method multidiffusion` (alone, or where it"),
    (["app", *NETWORKS, "--control-image", SCENE], "`--control-image` has no effect: the page asks for it. Leave it"),
    (["app", *NETWORKS, "--ip-adapter", "x"], "`--ip-adapter`=x must be a file with a folder image_encoder/ beside it"),
    # paths
    (
        [*VARY, "--ip-adapter", "x", "--ip-adapter-image", SCENE],
        "`--ip-adapter`=x must be a file with a folder image_encoder/ beside it.",
    ),
    (["vary", "nocat.png", *VARY[2:]], "`nocat.png` does not exist; give the path of a picture."),
    (["vary", *VARY[2:]], "give at least one PICTURE, or contexts with `--encoder`."),
    (
        [*VARY, "--method", "multidiffusion", "--region", f"nomask.png={SCENE}"],
        "`nomask.png` does not exist; give the path of a picture.",
    ),
    ([*VARY, "--sheet", "sheet.exe"], "`--sheet`='sheet.exe' must end in .png, .jpg or .webp."),
    ([*VARY, "--sheet", "{out}/old/sheet.png"], "old/sheet.png` exists; use --overwrite, or another --out."),
    (["vary", SCENE, *NETWORKS, "--out", "{out}/old"], "settings.json` exists; use --overwrite, or another --out."),
    (
        ["vary", SCENE, *NETWORKS, "--out", "{out}/old/sheet.png"],
        "sheet.png` is a file; it cannot hold `settings.json`.",
    ),
    (["encode", SCENE, "--encoder", NETWORKS[3], "--out", "x.pt"], "`--out` x.pt must end in .safetensors."),
    (["encode", "nocat.png", "--encoder", NETWORKS[3], "--out", "x.safetensors"], "`nocat.png` does not exist"),
    (
        ["export", "nowhere", "{out}/x"],
        "`nowhere` does not exist; give a checkpoint, the folder of a run, or an encoder.",
    ),
    (["export", NETWORKS[3], "{out}/old"], "old` exists; use --overwrite, or another OUT."),
    (["import", "nowhere.safetensors", "{out}/x"], "`nowhere.safetensors` is not a file; give a released file."),
]

RUN_ALL = """
import contextlib, io, json, sys, time
from seecoder.cli import main
answers = []
for mistake in json.load(sys.stdin):
    said, before, start = io.StringIO(), set(sys.modules), time.perf_counter()
    with contextlib.redirect_stderr(said):
        try:
            code = main(mistake)
        except SystemExit as error:
            code = error.code
    heavy = {"torch", "diffusers", "numpy", "PIL", "transformers"} & (set(sys.modules) - before)
    answers.append((code, said.getvalue(), sorted(heavy), time.perf_counter() - start))
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    (out / "old").mkdir()
    for name in ("settings.json", "sheet.png"):
        (out / "old" / name).write_text("x")
    given = json.dumps([[word.format(out=out) for word in words] for words, _ in MISTAKES])
    done = subprocess.run([sys.executable, "-c", RUN_ALL], input=given, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert not (out / "new").exists()
    return json.loads(done.stdout)


@pytest.mark.parametrize("place", range(len(MISTAKES)), ids=lambda place: " ".join(MISTAKES[place][0])[-60:])
def test_a_mistake_is_answered_at_once_in_one_line(place, answers):
    code, said, heavy, seconds = answers[place]
    assert code == 2
    assert MISTAKES[place][1] in said
    assert said.count("\n") == 1
    assert heavy == []
    assert seconds < 2  # a tenth of a second on a machine that has nothing else to do


def test_where_the_sheet_goes():
    assert sheet_path("a.png", Path("out")) == Path("out/a.png")
    assert sheet_path("x/a.png", Path("out")) == Path("x/a.png")
    assert sheet_path("", Path("out")) is None


def test_what_a_base_says_of_its_size(base_folder):
    assert base_pixels(str(base_folder)) == (16, 16, 2)
    assert base_pixels(None) == (512, 512, 8)
    assert base_pixels("owner/name") == (512, 512, 1)  # any size may be right


@pytest.mark.parametrize(
    ("unet", "side"),
    [
        ({"sample_size": 32, "_diffusers_version": "0.6.0", "cross_attention_dim": 768}, 512),
        ({"cross_attention_dim": 2048}, 1024),
        ({"sample_size": None, "cross_attention_dim": 1024}, 512),  # it may be 768, too
        ({"sample_size": 96, "cross_attention_dim": 1024}, 768),
    ],
)
def test_published_configurations_are_read_as_what_they_mean(unet, side, tmp_path):
    for part, config in (("unet", unet), ("vae", {"block_out_channels": [1, 2, 4, 4]})):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    assert base_pixels(str(tmp_path)) == (side, side, 8)
    (tmp_path / "unet" / "config.json").write_text("{")
    assert base_pixels(str(tmp_path)) == (512, 512, 1)


def test_a_port_in_use_is_told_at_once(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["app", "--base", WORLD, "--encoder", NETWORKS[3], "--port", str(port)]) == 2
    assert f"`--port`={port} is in use" in capsys.readouterr().err
