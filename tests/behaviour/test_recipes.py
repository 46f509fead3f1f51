"""The recipes of the pipelines' README run as they stand there, on tiny networks."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from seecoder.cli import main
from seecoder.images.gate import load_image
from seecoder.images.saving import save_image

README = Path(__file__).resolve().parents[2] / "seecoder" / "pipelines" / "README.md"
RECIPES = README.read_text().partition("## Recipes")[2].partition("\n## ")[0]
COMMANDS = [
    shlex.split(block.replace("\\\n", " ")) for block in re.findall(r"```bash\n(seecoder .*?)```", RECIPES, re.DOTALL)
]


@pytest.fixture
def folder(tmp_path, monkeypatch, base_folder, tiny_encoder, tiny_controlnet):
    """The files that the recipes name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sd-1.5").symlink_to(base_folder)
    tiny_encoder.save_pretrained(tmp_path / "my-encoder")
    tiny_controlnet.save_pretrained(tmp_path / "openpose")
    names = {word for command in COMMANDS for word in command if word.endswith((".jpg", ".png"))}
    assert names
    for place, name in enumerate(sorted(names)):
        picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(place))
        if "mask" in name:
            picture = (torch.arange(64) < 32).float().expand(3, 64, 64)
        save_image(picture, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[command.index("--out") + 1])
def test_a_recipe_runs_as_it_is_written(command, folder, capsys):
    assert main([*command[1:], "--device", "cpu", "--steps", "2"]) == 0, capsys.readouterr().err
    out = folder / command[command.index("--out") + 1]
    assert load_image(next(out.glob("0001-*.png"))).shape == (3, 16, 16)


def test_there_are_the_recipes_that_people_ask_for():
    assert {command[command.index("--out") + 1] for command in COMMANDS} >= {"posed", "worn"}
