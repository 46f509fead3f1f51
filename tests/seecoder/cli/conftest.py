"""Folders on disk that commands work on."""

import pytest

from seecoder.images.loading import save_image


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory, tiny_encoder):
    folder = tmp_path_factory.mktemp("encoder") / "tiny"
    tiny_encoder.save_pretrained(folder)
    return folder


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
