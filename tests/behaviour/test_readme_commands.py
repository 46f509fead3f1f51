"""The commands of the README run on bases with the configurations that they are published with."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from seecoder.cli import main
from seecoder.images.saving import save_image
from tests.fixtures.pipelines import build_encoder
from tests.fixtures.published import BASES, XL, write_published

README = Path(__file__).resolve().parents[2] / "README.md"
SMALLER = 16  # sizes of pictures in commands are divided by this, as the tiny bases' are by eight
# The first needs the released file; the second serves until it is stopped.
LEFT_OUT = ("import", "app")


def commands() -> list[str]:
    """Commands of the library that are given a Stable Diffusion folder."""
    blocks = re.findall(r"```bash\n(.*?)```", README.read_text(), re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [
        line for line in lines if line.startswith("seecoder ") and "sd-1.5" in line and line.split()[1] not in LEFT_OUT
    ]


def small(command: str) -> list[str]:
    """The arguments of a command, for a base whose pictures are small, and with few steps."""
    arguments = shlex.split(command)[1:]
    for place, argument in enumerate(arguments[:-1]):
        if argument in ("--height", "--width"):
            arguments[place + 1] = str(int(arguments[place + 1]) // SMALLER)
    steps = [] if "--steps" in arguments else ["--steps", "10"]
    return [*arguments, *steps, "--device", "cpu"]


@pytest.fixture(params=["sd-1.5", "sd-2.1", "sdxl"], scope="module")
def desk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the commands name; its `sd-1.5` is the published base of the parameter."""
    name, folder = request.param, tmp_path_factory.mktemp("desk")
    write_published(folder / "sd-1.5", name)
    width = BASES[name][0]["cross_attention_dim"]
    build_encoder(context_dim=width, pooled_dim=1280 if name in XL else None).save_pretrained(folder / "my-encoder")
    unet: Any = UNet2DConditionModel.from_pretrained(folder / "sd-1.5" / "unet")
    ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8, 8)).save_pretrained(folder / "canny")
    for command in commands():
        for picture in re.findall(r"[\w-]+\.(?:jpg|png)", command):
            save_image(torch.rand((3, 64, 64), generator=torch.Generator().manual_seed(len(picture))), folder / picture)
    return folder


def test_the_readme_shows_what_people_come_for() -> None:
    assert {command.split()[1] for command in commands()} == {"vary", "panorama"}
    assert len(commands()) >= 5


@pytest.mark.heavy
@pytest.mark.parametrize("command", commands(), ids=lambda command: command.split("--out ")[1].split()[0])
def test_a_command_makes_its_pictures(command: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    assert main(small(command)) == 0
    out = Path(command.split("--out ")[1].split()[0])
    pictures = list(out.glob("*seed*.png"))
    assert len(pictures) == int((re.findall(r"--count (\d+)", command) or [1])[0])
    assert (out / "settings.json").exists()


def test_encoding_and_looking_into_files_work_beside_them(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    assert main(["encode", "cat.jpg", "--encoder", "my-encoder", "--out", "cat.safetensors"]) == 0
    for path in ("sd-1.5", "my-encoder", "cat.safetensors"):
        capsys.readouterr()
        assert main(["info", path]) == 0
        assert "parameters" in capsys.readouterr().out
