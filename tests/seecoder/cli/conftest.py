"""Folders on disk that commands work on."""

import json

import pytest
import torch

from seecoder.cli import main
from seecoder.images.saving import save_image
from seecoder.weights.digests import tensors_sha256


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory, tiny_encoder):
    folder = tmp_path_factory.mktemp("encoder") / "tiny"
    tiny_encoder.save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(tiny_encoder, encoder_folder, tmp_path):
    """What training leaves: the trained part, its average at 1.5 times its values, and the place of the backbone."""
    own = {key: value for key, value in tiny_encoder.state_dict().items() if not key.startswith("backbone.")}
    entries = {
        "encoder_config": {key: value for key, value in tiny_encoder.config.items() if not key.startswith("_")},
        "encoder_trainable": own,
        "ema": {key: value * 1.5 for key, value in own.items()},
        "backbone_source": str(encoder_folder),
        "backbone_sha256": tensors_sha256(tiny_encoder.backbone.state_dict()),
    }
    torch.save({"seecoder": entries, "state_dict": {}, "global_step": 250}, tmp_path / "trained.ckpt")
    return tmp_path / "trained.ckpt"


@pytest.fixture
def info_of(capsys):
    """What `seecoder info --json` says of a path."""

    def run(path):
        capsys.readouterr()
        assert main(["info", str(path), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def pictures(picture, tmp_path):
    """Two picture files."""
    paths = [tmp_path / "first one.png", tmp_path / "second.jpg"]
    for path, pixels in zip(paths, (picture, 1 - picture), strict=True):
        save_image(pixels, path)
    return [str(path) for path in paths]


@pytest.fixture
def networks(base_folder, encoder_folder):
    """Options that name the tiny networks."""
    return ["--base", str(base_folder), "--encoder", str(encoder_folder), "--device", "cpu", "--steps", "2"]
