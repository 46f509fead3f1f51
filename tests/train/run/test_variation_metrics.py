"""Validation by the measures of `seecoder eval`."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from data.world.conditioner import BASE
from seecoder.base_model.facts import STABLE_DIFFUSION_SCHEDULE
from seecoder.cli import main
from seecoder.images.gate import load_image
from tests.fixtures.training import CONTEXT_DIM
from train.run.variation_metrics import VariationMetrics, variation_figures
from train.stages.noise_schedule import NoiseSchedule
from train.stages.previews import Preview

SETTINGS = VariationMetrics(networks=(str(BASE / "backbone"),), pictures=3, rows=2)


@pytest.fixture
def stage(base) -> Any:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return SimpleNamespace(
        seed=3,
        global_step=20,
        device=torch.device("cpu"),
        preview=Preview(steps=2),
        schedule=NoiseSchedule(STABLE_DIFFUSION_SCHEDULE),
        unet=UNet2DConditionModel.from_pretrained(base, subfolder="unet").requires_grad_(False),
        vae=AutoencoderKL.from_pretrained(base, subfolder="vae").requires_grad_(False),
        data=SimpleNamespace(
            held_out_pixels=pixels, batch_size=2, held_out_batch=lambda part, device: {"pixels": pixels[part]}
        ),
        encode=lambda batch, keys: (
            batch["pixels"].float().mean((1, 2, 3)).view(-1, 1, 1).expand(-1, 5, CONTEXT_DIM),
            None,
        ),
    )


def test_variations_are_written_and_measured_as_the_command_does(stage, tmp_path, capsys):
    found = variation_figures(stage, SETTINGS, tmp_path)
    assert set(found) == {"similarity_backbone", "map_distance_backbone"}  # three inputs have no distribution
    assert variation_figures(stage, SETTINGS, tmp_path) == found
    pictures = sorted((tmp_path / "variations" / "step-00000020").iterdir())
    assert len(pictures) == 6
    assert len({load_image(path).sum().item() for path in pictures}) == 6  # each has noise of its own
    assert torch.equal(load_image(tmp_path / "variations/inputs/0002.png"), stage.data.held_out_pixels[1] / 255)
    assert main(["eval", str(tmp_path), "--device", "cpu"]) == 0
    assert f"{found['map_distance_backbone']:.4g}" in capsys.readouterr().out


def test_with_nothing_held_out_there_is_nothing_to_measure(stage, tmp_path):
    stage.data.held_out_pixels = stage.data.held_out_pixels[:0]
    assert variation_figures(stage, SETTINGS, tmp_path) == {}


def test_networks_have_to_be_named_and_there():
    with pytest.raises(ValueError, match=r"`networks`=\(\)"):
        VariationMetrics(())
    with pytest.raises(ValueError, match=r"`networks`=\('/not/there',\) .*must be paths of networks on this machine"):
        VariationMetrics(("/not/there",))
