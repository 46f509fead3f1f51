"""Rates and losses on scenes whose truth is known."""

import math
import shutil

import pytest
import torch

from data.world.conditioner import BASE, load_conditioner
from data.world.reader.readings import read
from data.world.render import render
from data.world.scenes import sample_scenes
from scripts.evaluation.counts import (
    Sampling,
    denoising_losses,
    encode_latents,
    layout_agreement,
    markdown_table,
    open_world,
    read_rates,
    sample_pictures,
    told,
)
from seecoder import SeeCoderPipeline, SeeCoderXLPipeline
from seecoder.base_model.latents import decode_pixels
from train.settings import OptimizerSettings
from train.stages import WorldDiffusionStage


@pytest.fixture(scope="module")
def pipeline():
    return SeeCoderPipeline.from_base(BASE, encoder=None, dtype=torch.float32)


def test_boxes_of_true_renderings_follow_the_layout():
    scenes = sample_scenes(24, seed=2)
    found = layout_agreement(read(render(scenes, 64)), scenes)
    assert min(found["center_y"], found["center_x"]) > 0.98
    assert found["size"] > 0.6  # a box is not a radius: a cross and a ring of one radius differ
    assert read_rates(render(scenes, 64), scenes)["corr_size"] == found["size"]


def test_too_few_objects_tell_nothing_of_places():
    scenes = sample_scenes(2, seed=2)
    for pictures in (torch.zeros(2, 3, 64, 64), render(scenes[torch.tensor([0, 0])], 64)):
        found = layout_agreement(read(pictures), scenes)
        assert all(math.isnan(value) for value in found.values())


def test_pictures_of_the_outlined_style_are_told_from_others():
    scenes = sample_scenes(8, seed=4)
    assert read_rates(render(scenes, 64, style="outlined"), scenes)["outlined"] == 1
    assert read_rates(render(scenes, 64), scenes)["outlined"] == 0


@torch.no_grad()
def test_outlines_are_read_behind_an_autoencoder_that_never_saw_any(pipeline):
    scenes = sample_scenes(32, seed=9_000_000)
    for style, expected in (("outlined", 0.75), ("shaded", 0.0)):
        latents = encode_latents(pipeline, render(scenes, 64, style=style))
        read_back = read_rates(decode_pixels(pipeline.vae, latents), scenes)
        assert read_back["outlined"] >= expected if expected else read_back["outlined"] == 0
        assert read_back["hue"] == read_back["background"] == 1


@torch.no_grad()
def test_the_right_context_has_the_smaller_loss_and_equal_contexts_equal_losses(pipeline):
    scenes = sample_scenes(16, seed=3)
    context = load_conditioner(BASE)(scenes)
    latents = encode_latents(pipeline, render(scenes, 64))
    contexts = {"true": told(context, None), "again": told(context, None), "other": told(context.roll(1, 0), None)}
    losses = denoising_losses(pipeline, latents, contexts)
    assert torch.equal(losses["true"], losses["again"])
    assert losses["true"].mean() < losses["other"].mean()


def test_shares_are_percentages_and_other_numbers_are_not():
    table = markdown_table({"row": {"count": 0.985, "objects": 1.02}}, ("count", "objects", "all"))
    assert table.splitlines()[-1] == "| row | 98.5 | 1.02 |  |"


@torch.no_grad()
def test_a_base_of_sdxls_family_that_hears_nothing_new_is_counted_as_its_source(pipeline, tmp_path):
    settings = {"init_from": str(BASE), "lowest_octave": -2, "pooled_dim": 16}
    stage = WorldDiffusionStage(OptimizerSettings(), vae=str(BASE / "vae"), **settings)
    for part, module in {"unet": stage.unet, "conditioner": stage.conditioner}.items():
        module.save_pretrained(tmp_path / part)
    for part in ("vae", "scheduler"):
        shutil.copytree(BASE / part, tmp_path / part)
    wide, scenes = open_world(tmp_path), sample_scenes(4, seed=3)
    assert isinstance(wide, SeeCoderXLPipeline)
    conditioner, sampling = load_conditioner(tmp_path), Sampling(steps=3)
    context = conditioner(scenes)
    given, plain = told(context, conditioner.pool(context)), told(context, None)
    assert set(given) == {"context", "pooled_context"}
    pictures = sample_pictures(wide, given, sampling)
    torch.testing.assert_close(pictures, sample_pictures(pipeline, plain, sampling))
    latents = encode_latents(pipeline, render(scenes, 64))
    losses = denoising_losses(wide, latents, {"scene": given})["scene"]
    torch.testing.assert_close(losses, denoising_losses(pipeline, latents, {"scene": plain})["scene"])
