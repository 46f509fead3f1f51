"""The committed encoders: their variations keep what the pictures show."""

from pathlib import Path

import pytest
import torch

from data.world.conditioner import BASE, BASE_XL
from data.world.render import render
from data.world.scenes import sample_scenes
from scripts.evaluation.counts import Sampling, open_world, read_rates, sample_pictures
from seecoder import SeeCoder, SeeCoderPipeline, SeeCoderXLPipeline

ENCODERS = Path(BASE).parent / "encoders"


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "base", "family"),
    [
        ("plain", BASE, SeeCoderPipeline),
        ("position_aware", BASE, SeeCoderPipeline),
        ("for_sdxl", BASE_XL, SeeCoderXLPipeline),
    ],
)
def test_variations_keep_what_the_pictures_show(name, base, family):
    encoder = SeeCoder.from_pretrained(ENCODERS / name).float().eval()
    pipeline = open_world(base, encoder)
    assert isinstance(pipeline, family)
    scenes = sample_scenes(16, 9_500_000)
    given = pipeline.context_arguments(list(render(scenes, 64)))
    pictures = sample_pictures(pipeline, given, Sampling(steps=15, guidance_scale=4.0, seed=1))
    kept = read_rates(pictures, scenes)
    assert min(kept["hue"], kept["background"], kept["texture"]) >= 0.9
    assert kept["shape"] >= 0.75
    assert kept["count"] >= 0.8
    if name != "plain":
        assert min(kept["corr_center_y"], kept["corr_center_x"]) >= 0.75
    shuffled = read_rates(pictures, scenes[torch.arange(16).roll(5)])
    assert max(shuffled["hue"], shuffled["background"], shuffled["shape"]) < 0.6


def test_the_encoders_are_small_enough_to_travel():
    assert sum(path.stat().st_size for path in ENCODERS.rglob("*") if path.is_file()) < 10e6
