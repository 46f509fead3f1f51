import importlib

import pytest
import yaml

from train.class_paths import _OLD_PATH, _new_path
from train.cli import build_parser

OLD_PATHS = {
    "train.autoencoder.AutoencoderStage": "train.stages.AutoencoderStage",
    "train.backbone.BackboneStage": "train.stages.BackboneStage",
    "train.diffusion.WorldDiffusionStage": "train.stages.WorldDiffusionStage",
    "train.latents.WorldLatents": "train.sources.WorldLatents",
    "train.seecoder.SeeCoderStage": "train.stages.SeeCoderStage",
    "train.shard_data.ShardPictures": "train.sources.ShardPictures",
    "train.world_data.WorldPictures": "train.sources.WorldPictures",
}


@pytest.mark.parametrize(("old", "new"), OLD_PATHS.items())
def test_every_new_path_leads_to_the_class_of_that_name(old, new):
    assert _OLD_PATH.sub(_new_path, f"a: {old}") == f"a: {new}"
    package, _, name = new.rpartition(".")
    assert old.endswith(f".{name}")
    assert getattr(importlib.import_module(package), name).__name__ == name
    assert name in importlib.import_module(package).__all__


@pytest.mark.parametrize("command", ["fit", "plan"])
def test_a_configuration_with_old_paths_is_read_and_said_once(command, settings, tmp_path, capsys):
    config = settings()
    config["stage"]["class_path"] = "train.seecoder.SeeCoderStage"
    config["data"]["class_path"] = "train.shard_data.ShardPictures"
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    read = build_parser().parse_args([command, "--config", str(path), "--data.init_args.batch_size", "3"])[command]
    assert (read.stage.class_path, read.data.class_path) == (
        "train.stages.SeeCoderStage",
        "train.sources.ShardPictures",
    )
    assert read.stage.init_args.encoder["context_dim"] == config["stage"]["init_args"]["encoder"]["context_dim"]
    assert read.data.init_args.batch_size == 3
    notes = capsys.readouterr().out.splitlines()
    assert [note.split()[3] for note in notes] == ["train.shard_data.ShardPictures", "train.seecoder.SeeCoderStage"]


def test_a_configuration_of_today_is_read_without_a_note(settings, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings()))
    build_parser().parse_args(["fit", "--config", str(path)])
    assert capsys.readouterr().out == ""
