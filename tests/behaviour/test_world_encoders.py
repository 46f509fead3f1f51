"""The committed encoders: their variations keep what the pictures show."""

from pathlib import Path

import pytest
import torch

from data.world.conditioner import BASE
from data.world.render import render
from data.world.scenes import sample_scenes
from scripts.evaluation.counts import Sampling, read_rates, sample_pictures
from seecoder import SeeCoder, SeeCoderPipeline

ENCODERS = Path(BASE).parent / "encoders"


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["plain", "position_aware"])
def test_variations_keep_what_the_pictures_show(name):
    encoder = SeeCoder.from_pretrained(ENCODERS / name).float().eval()
    pipeline = SeeCoderPipeline.from_base(BASE, encoder=encoder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    scenes = sample_scenes(16, 9_500_000)
    with torch.no_grad():
        context = encoder(render(scenes, 64))
    pictures = sample_pictures(pipeline, context, Sampling(steps=15, guidance_scale=4.0, seed=1))
    kept = read_rates(pictures, scenes)
    assert min(kept["hue"], kept["background"], kept["texture"]) >= 0.9
    assert kept["shape"] >= 0.75
    assert kept["count"] >= 0.8
    if name == "position_aware":
        assert min(kept["corr_center_y"], kept["corr_center_x"]) >= 0.75
    shuffled = read_rates(pictures, scenes[torch.arange(16).roll(5)])
    assert max(shuffled["hue"], shuffled["background"], shuffled["shape"]) < 0.6


def test_the_encoders_are_small_enough_to_travel():
    assert sum(path.stat().st_size for path in ENCODERS.rglob("*") if path.is_file()) < 10e6
