import json

import pytest
import torch

from seecoder import SeeCoder
from train.settings import OptimizerSettings
from train.stages.backbone import BackboneStage, half

SIZES = {
    "backbone": "resnet10t",
    "backbone_args": {"out_indices": [1, 2, 3], "channels": [8, 8, 8, 8], "stem_width": 8},
}


def test_export_fills_an_encoders_backbone(tmp_path):
    stage = BackboneStage(OptimizerSettings(), image_size=32, **SIZES)
    stage.train()
    with torch.no_grad():
        for _ in range(3):  # batch statistics that differ from the initial ones
            stage.backbone(torch.rand(4, 3, 32, 32))
    stage.eval()
    stage.export(tmp_path)
    encoder = SeeCoder(**SIZES, context_dim=32, num_heads=2, decoder_layers=1, query_layers=3, num_local_queries=2)
    coverage = encoder.load_backbone_weights(tmp_path / "backbone" / "model.safetensors")
    assert not coverage.missing
    assert not coverage.unused
    pixels = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        for ours, theirs in zip(stage.backbone(pixels), encoder.backbone(pixels), strict=True):
            assert torch.allclose(ours, theirs, atol=2e-2 * float(ours.abs().max()))
    config = json.loads((tmp_path / "backbone" / "config.json").read_text())
    assert {name: config[name] for name in SIZES} == SIZES


def test_it_learns_what_it_is_shown(tmp_path, fit):
    config = {
        "run": {
            "folder": str(tmp_path / "run"),
            "max_steps": 30,
            "accelerator": "cpu",
            "log_every": 15,
            "checkpoint_every": 30,
        },
        "stage": {
            "class_path": "train.stages.backbone.BackboneStage",
            "init_args": {
                "backbone": "resnet10t",
                "backbone_args": {"out_indices": [1, 2, 3], "channels": [16, 16, 16, 16], "stem_width": 8},
                "image_size": 32,
                "optimizer": {"lr": 1e-2, "clip_norm": 5.0},
            },
        },
        "data": {
            "class_path": "train.sources.world_data.WorldPictures",
            "init_args": {"batch_size": 32, "pool_size": 512, "held_out": 64, "image_size": 32},
        },
    }
    assert fit(config) == 0
    held_out = json.loads((tmp_path / "run" / "backbone" / "config.json").read_text())["held_out"]
    assert held_out["accuracy_hue"] > 0.25  # chance is 1/8
    assert held_out["accuracy_background"] > 0.25  # chance is 1/6


def test_half_precision_refuses_what_does_not_fit():
    assert half(torch.tensor([7])).dtype == torch.int64
    with pytest.raises(ValueError, match="half precision"):
        half(torch.tensor([1e6]))
