from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image

from seecoder.base_model.facts import STABLE_DIFFUSION_SCHEDULE
from tests.fixtures.training import CONTEXT_DIM, POOLED_DIM
from train.stages.noise import normal
from train.stages.noise_schedule import NoiseSchedule
from train.stages.previews import Preview, sample_row, write_sheet


@pytest.fixture
def stage(base) -> Any:
    return tiny_stage(base)


def tiny_stage(folder) -> Any:
    return SimpleNamespace(
        seed=3,
        preview=Preview(pictures=2, rows=2, steps=3, guidance_scale=2.0),
        schedule=NoiseSchedule(STABLE_DIFFUSION_SCHEDULE),
        unet=UNet2DConditionModel.from_pretrained(folder, subfolder="unet").requires_grad_(False),
        vae=AutoencoderKL.from_pretrained(folder, subfolder="vae").requires_grad_(False),
    )


def test_a_row_is_plain_ddim_with_guidance_against_the_zero_context(stage):
    context = torch.randn(2, 5, CONTEXT_DIM)
    scheduler = DDIMScheduler.from_config(dict(STABLE_DIFFUSION_SCHEDULE))
    scheduler.set_timesteps(3)
    keys = torch.tensor([[-3, 0], [-3, 1]])
    latents = normal(3, "preview", keys, (4, 8, 8))
    for time in scheduler.timesteps:
        none, own = (stage.unet(latents, time, encoder_hidden_states=given).sample for given in (0 * context, context))
        latents = scheduler.step(none + 2.0 * (own - none), time, latents).prev_sample
    expected = (stage.vae.decode(latents / 0.7).sample / 2 + 0.5).clamp(0, 1)
    found = sample_row(stage, 1, context, None, 32, 32)
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, sample_row(stage, 0, context, None, 32, 32), atol=1e-2)


def test_a_pooled_vector_reaches_the_unet(xl_base):
    stage = tiny_stage(xl_base)
    context, pooled = torch.randn(2, 5, CONTEXT_DIM), torch.randn(2, POOLED_DIM)
    first, other = (sample_row(stage, 0, context, vector, 32, 32) for vector in (pooled, pooled + 3))
    assert first.shape == (2, 3, 32, 32)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("count", [1, 2])
def test_the_sheet_has_the_inputs_above_their_variations(stage, tmp_path, count):
    """Of pairs the references come first, then the pictures."""
    inputs = list(torch.randint(0, 256, (count, 2, 3, 32, 32), dtype=torch.uint8))
    path = tmp_path / "previews" / "a.png"
    variations = write_sheet(stage, inputs, torch.randn(2, 5, CONTEXT_DIM), None, path)
    assert variations.shape == (4, 3, 32, 32)
    sheet = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
    gap = (sheet.shape[2] - 2 * 32) // 3
    cells = [
        sheet[:, gap + row * (32 + gap) :, gap + column * (32 + gap) :][:, :32, :32]
        for row in range(count + 2)
        for column in range(2)
    ]
    expected = [*torch.cat(inputs), *(variations * 255).round().to(torch.uint8)]
    assert all(torch.equal(cell, image) for cell, image in zip(cells, expected, strict=True))


def test_settings_that_show_nothing_are_refused():
    with pytest.raises(ValueError, match="`rows`=0"):
        Preview(rows=0)
