"""Parameters, operations and memory, counted without numbers."""

from pathlib import Path
from typing import Any

import pytest

from seecoder.base_model.known_bases import BaseSizes, base_sizes
from train.estimate.costs import count_costs
from train.settings import OptimizerSettings
from train.stages.seecoder import SeeCoderStage


def test_counted_parameters_are_those_of_the_real_stage(settings, base):
    options = settings()["stage"]["init_args"]
    sizes = base_sizes(str(base))
    assert sizes is not None
    costs = count_costs({"encoder": options["encoder"]}, sizes, 32, mixed=False)
    stage = SeeCoderStage(OptimizerSettings(), str(base), options["encoder"], options["backbone_weights"])
    assert costs.trained == sum(weight.numel() for _, weight in stage.trained_parameters())
    assert sum(costs.frozen.values()) + costs.trained == sum(weight.numel() for weight in stage.parameters())


@pytest.mark.heavy
def test_checkpointing_trades_memory_for_operations_and_precision_halves_memory(base):
    encoder = {
        "backbone": "swin_tiny_patch4_window7_224",
        "backbone_args": {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 4},
        "context_dim": 32,
        "num_heads": 2,
        "decoder_layers": 6,
        "query_layers": 3,
    }
    sizes = base_sizes(str(base))
    assert isinstance(sizes, BaseSizes)
    options = {"encoder": encoder}
    plain = count_costs(options, sizes, 256, mixed=False)
    frugal = count_costs({**options, "gradient_checkpointing": ("encoder",)}, sizes, 256, mixed=False)
    mixed = count_costs({**options, "frozen_dtype": "bfloat16"}, sizes, 256)
    assert frugal.activation_bytes < 0.8 * plain.activation_bytes
    assert mixed.activation_bytes < 0.8 * plain.activation_bytes
    forward, backward = (plain.flops[f"decoder and queries {way}"] for way in ("forward", "backward"))
    assert 1.8 * forward < backward < 2.1 * forward
    again = frugal.flops["decoder and queries backward"] - backward
    assert 0.95 * forward < again <= forward  # recomputation ends at the last tensor that is needed
    assert mixed.flops == plain.flops
    assert 2 * (plain.frozen_bytes - mixed.frozen_bytes) == 4 * (plain.frozen["backbone"] + plain.frozen["unet"])


@pytest.mark.heavy
def test_what_is_cached_costs_no_operations_but_memory_stays_for_the_rest(settings: Any, base: Path):
    options = {"encoder": settings()["stage"]["init_args"]["encoder"]}
    sizes = base_sizes(str(base))
    assert isinstance(sizes, BaseSizes)
    raw, half, none = (
        count_costs(options, sizes, 32, cached={"autoencoder": part, "backbone": part}) for part in (0.0, 0.5, 1.0)
    )
    assert raw.mean_flops == raw.flops == half.flops == none.flops
    for part in ("backbone", "autoencoder"):
        assert half.mean_flops[part] == round(raw.flops[part] / 2) > 0
        assert none.mean_flops[part] == 0
    assert none.total_flops == raw.total_flops - raw.flops["backbone"] - raw.flops["autoencoder"]
    assert half.activation_bytes == raw.activation_bytes == none.activation_bytes


@pytest.mark.heavy
def test_an_encoder_that_sees_a_smaller_picture_costs_less_and_the_rest_the_same(settings: Any, base: Path):
    encoder = settings()["stage"]["init_args"]["encoder"]
    sizes = base_sizes(str(base))
    assert isinstance(sizes, BaseSizes)
    whole, small = (count_costs({"encoder": encoder, "encoder_size": size}, sizes, 64) for size in (None, 32))
    assert small.flops["backbone"] < 0.5 * whole.flops["backbone"]
    assert small.flops["autoencoder"] == whole.flops["autoencoder"]
    assert small.flops["unet forward"] == whole.flops["unet forward"]


@pytest.mark.slow
def test_operations_of_the_published_sizes():
    """Counts by torch's own FlopCounterMode over the same modules, in GFLOP; parameters as the releases have them."""
    sizes = base_sizes("stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert sizes is not None
    costs = count_costs({"encoder": {}, "frozen_dtype": "bfloat16"}, sizes, 512)
    assert costs.trained == 98_913_792
    assert costs.frozen == {"backbone": 195_201_204, "unet": 859_520_964, "vae": 83_653_863, "encoder": 0}
    counted = {name: round(count / 1e9) for name, count in costs.flops.items()}
    assert counted == {
        "backbone": 411,
        "decoder and queries forward": 858,
        "autoencoder": 1117,
        "unet forward": 809,
        "unet backward": 875,
        "decoder and queries backward": 1708,
    }
