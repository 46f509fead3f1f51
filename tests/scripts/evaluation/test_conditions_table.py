from functools import partial

import pytest
import torch
import yaml

from data.world.conditioner import BASE
from data.world.render import render, segment
from data.world.scenes import sample_scenes
from scripts.evaluation.conditions_table import kinds, open_run, sample, seam, table
from seecoder.base_model.latents import decode_pixels
from train.conditioners.channels import Channels
from train.settings import OptimizerSettings
from train.sources.world_conditions import WorldConditions
from train.stages.diffusion import WorldDiffusionStage
from train.stages.noise import held_out_keys

SAMPLING = {"steps": 2, "guidance": 1.0, "seed": 3}


def made(columns, tells_scene=True) -> tuple[WorldDiffusionStage, WorldConditions]:
    """The committed base, told more than it knows, and its source."""
    parts = [partial(Channels, columns=columns)] if columns else []
    octaves = yaml.safe_load((BASE / "conditioner/config.json").read_text()).get("lowest_octave", 0)
    options = {"conditioners": parts, "tells_scene": tells_scene, "lowest_octave": octaves, "init_from": str(BASE)}
    stage = WorldDiffusionStage(OptimizerSettings(), vae=str(BASE / "vae"), **options)
    data = WorldConditions(1, str(BASE / "vae"), tuple(columns), pool_size=1, held_out=1)
    data.setup("fit")
    return stage.eval(), data


def test_a_hole_is_filled_with_what_is_asked_and_nothing_is_counted_that_was_not_hidden():
    rows = table(*made({"masked": 5}), side=64, count=8, **SAMPLING)
    assert [row[""] for row in rows] == ["sampled", "autoencoder"]
    assert 0 < rows[0]["pictures"] < 8
    assert rows[1]["shape"] >= 0.75, "the autoencoder keeps what was there"
    assert rows[1]["PSNR"] > 30


def test_small_pictures_are_enlarged_beside_bicubic_and_the_best_that_latents_can():
    rows = {row[""]: row for row in table(*made({"low_resolution": 3}, False), side=128, count=3, **SAMPLING)}
    assert rows["autoencoder"]["PSNR"] > rows["bicubic"]["PSNR"] > 15
    assert rows["autoencoder"]["spectrum"] < rows["bicubic"]["spectrum"]
    assert rows["autoencoder"]["map"] > 0.95
    assert rows["autoencoder"]["IoU"] > 0.9
    assert 0.8 < rows["autoencoder"]["seam"] < 1.25


@pytest.mark.heavy
def test_sampling_is_guided_away_from_what_is_told_nothing():
    stage, data = made({})
    scenes = sample_scenes(4, 0)
    batch = {"keys": held_out_keys(slice(0, 4)), "mean": torch.zeros(4, 4, 16, 16), "scenes": vars(scenes)}
    batch["size_ids"] = torch.zeros(4, 6)
    plain, guided = (sample(stage, batch, steps=8, guidance=scale, seed=1) for scale in (1.0, 4.0))
    assert not torch.equal(plain, guided)
    chroma = decode_pixels(data.vae, guided)
    right = segment(scenes, 64)[:, 2] > 0.5
    hue = (chroma.amax(1) - chroma.amin(1))[right].mean() - (chroma.amax(1) - chroma.amin(1))[~right].mean()
    assert float(hue) > 0.2, "objects lie where the layout says"


def test_sky_ground_and_object_are_told_apart():
    scenes = sample_scenes(20, 5)
    agreement = (kinds(render(scenes, 64)) == segment(scenes, 64).argmax(1)).float().mean((1, 2))
    assert float(agreement.min()) > 0.97


@pytest.mark.parametrize(("height", "expected"), [(0.0, 1.0), (0.5, 6.0)])
def test_a_seam_is_a_step_beyond_the_steps_beside_it(height, expected):
    ramp = torch.arange(16).float().mul(0.1).expand(1, 3, 16, 16) + torch.arange(16).float().mul(0.1).view(16, 1)
    side = (torch.arange(16) >= 8).long()
    pixels = ramp + height * (side[:, None] + side)
    assert seam(pixels, side[:, None] * 16 + side) == pytest.approx(expected, rel=1e-3)


@pytest.mark.heavy
def test_a_run_is_opened_by_what_lies_in_its_folder(base, fit, load, tmp_path):
    stage = {
        "class_path": "train.stages.WorldDiffusionStage",
        "init_args": {
            "vae": str(base / "vae"),
            "optimizer": {"lr": 1e-3},
            "block_out_channels": [16, 16, 16],
            "attention_heads": [2, 2, 2],
            "norm_num_groups": 4,
            "context_dim": 32,
            "conditioners": [
                {"class_path": "train.conditioners.label_tokens.LabelTokens", "init_args": {"num_labels": 48}},
            ],
        },
    }
    data = {"vae": str(base / "vae"), "batch_size": 2, "pool_size": 4, "held_out": 2, "columns": ["labels"]}
    run = {"folder": str(tmp_path / "run"), "max_steps": 1, "accelerator": "cpu"}
    source = {"class_path": "train.sources.WorldConditions", "init_args": {**data, "image_size": 32}}
    assert fit({"run": run, "stage": stage, "data": source}) == 0
    opened, columns = open_run(tmp_path / "run")
    assert columns.columns == ("labels",)
    assert not opened.training
    saved = load(tmp_path / "run" / "step-00000001.ckpt")["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in opened.state_dict().items())
