"""The recipes of the pipelines' README run as they stand there, on tiny networks."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from data.world.conditioner import BASE, ENCODERS
from data.world.reader.readings import read
from data.world.reader.segmentation import saturated_mask
from data.world.render import render
from data.world.scenes import sample_scenes
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


def test_what_is_tried_on_changes_the_clothes_alone(folder):
    (command,) = [command for command in COMMANDS if "tried-on" in command]
    assert main([*command[1:], "--device", "cpu", "--steps", "2"]) == 0
    made, person = load_image(next((folder / "tried-on").glob("0001-*.png"))), load_image("person.jpg")
    assert made.shape == (3, 16, 16)
    person = torch.nn.functional.interpolate(person[None], (16, 16), mode="bicubic", antialias=True)[0].clamp(0, 1)
    assert (made[..., 8:] - person[..., 8:]).abs().max() <= 1 / 255
    assert (made[..., :8] - person[..., :8]).abs().max() > 0.1


def test_a_garment_is_tried_on_in_the_world(tmp_path, monkeypatch, capsys):
    """The object of one scene is redrawn after another one's: its hue changes, what lies around it stays."""
    monkeypatch.chdir(tmp_path)
    (command,) = [command for command in COMMANDS if "tried-on" in command]
    (tmp_path / "sd-1.5").symlink_to(BASE)
    (tmp_path / "my-encoder").symlink_to(ENCODERS / "plain")
    scenes = sample_scenes(32, 4)
    hues = scenes.hue.tolist()
    worn = next(place for place, hue in enumerate(hues) if hue != hues[0])
    person, garment = render(scenes[torch.tensor([0, worn])], 64)
    clothes = torch.from_numpy(saturated_mask(person.numpy())).float().expand(3, -1, -1)
    clothes = torch.nn.functional.max_pool2d(clothes, 5, 1, 2)  # with its soft border
    everything = {"person.jpg": person, "shirt.jpg": garment, "clothes-mask.png": clothes, "shirt-mask.png": None}
    for name, pixels in everything.items():
        save_image(torch.ones(3, 64, 64) if pixels is None else pixels, tmp_path / name)
    assert main([*command[1:], "--device", "cpu", "--steps", "15", "--guidance", "4"]) == 0, capsys.readouterr().err
    made = load_image(next((tmp_path / "tried-on").glob("0001-*.png")))
    kept = clothes[0] == 0
    assert (made[:, kept] - load_image(tmp_path / "person.jpg")[:, kept]).abs().max() <= 1 / 255
    (found,) = read(made[None])
    assert found.main is not None
    assert found.main.hue == hues[worn]


def test_there_are_the_recipes_that_people_ask_for():
    assert {command[command.index("--out") + 1] for command in COMMANDS} >= {"posed", "worn", "tried-on"}
