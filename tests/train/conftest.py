"""A base, a backbone and shards that are small enough to train in seconds; all weights are random."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from data.build import main as build_shards
from data.cache import main as cache
from data.world.conditioner import WorldConditioner
from train.backbone import BackboneStage
from train.cli import main
from train.noise_schedule import STABLE_DIFFUSION_SCHEDULE
from train.settings import OptimizerSettings

CONTEXT_DIM = 32
POOLED_DIM = 24
BACKBONE = {
    "backbone": "resnet10t",
    "backbone_args": {"out_indices": [1, 2, 3], "channels": [8, 8, 8, 8], "stem_width": 8},
}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_base(folder: Path, prediction_type: str = "epsilon") -> Path:
    """A random base whose UNet really uses its context."""
    torch.manual_seed(0)
    levels = 3
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        mid_block_add_attention=False,
        scaling_factor=0.7,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=CONTEXT_DIM,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "attn2" in name and weight.ndim > 1:
                weight.mul_(4)
    vae.save_pretrained(folder / "vae")
    unet.save_pretrained(folder / "unet")
    WorldConditioner(context_dim=CONTEXT_DIM).save_pretrained(folder / "conditioner")
    scheduler = DDIMScheduler.from_config({**STABLE_DIFFUSION_SCHEDULE, "prediction_type": prediction_type})
    scheduler.save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def velocity_base(tmp_path_factory) -> Path:
    return write_base(tmp_path_factory.mktemp("velocity_base"), "v_prediction")


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    BackboneStage(OptimizerSettings(), image_size=32, **BACKBONE).export(folder)
    return folder / "backbone"


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shards"
    assert build_shards(["world", str(folder), "--count", "24", "--size", "32", "--samples-per-shard", "8"]) == 0
    return folder


@pytest.fixture(scope="session")
def held_out_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of other scenes."""
    folder = tmp_path_factory.mktemp("data") / "held_out"
    options = ("--count", "8", "--size", "32", "--samples-per-shard", "4", "--seed", "5")
    assert build_shards(["world", str(folder), *options]) == 0
    return folder


@pytest.fixture(scope="session")
def cached(base: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards with latents, also of mirrored pictures."""
    folder = tmp_path_factory.mktemp("cached") / "shards"
    assert cache([str(shards), str(folder), "--base", str(base), "--size", "32", "--flip", "--device", "cpu"]) == 0
    return folder


@pytest.fixture(scope="session")
def with_maps(base: Path, backbone_folder: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards with latents and backbone maps, also of mirrored pictures."""
    folder = tmp_path_factory.mktemp("with_maps")
    stage = {"encoder": {**BACKBONE, "context_dim": CONTEXT_DIM}, "backbone_weights": str(backbone_folder)}
    (folder / "config.yaml").write_text(yaml.safe_dump({"stage": {"init_args": stage}}))
    arguments = [str(shards), str(folder / "shards"), "--base", str(base), "--size", "32", "--device", "cpu"]
    assert cache([*arguments, "--flip", "--maps", str(folder / "config.yaml")]) == 0
    return folder / "shards"


@pytest.fixture
def settings(base, backbone_folder, shards, tmp_path) -> Callable[..., dict[str, Any]]:
    """Make the configuration of a tiny SeeCoder training; dotted names change values."""

    def make(**changes: Any) -> dict[str, Any]:
        config: dict[str, Any] = {
            "run": {
                "folder": str(tmp_path / "run"),
                "max_steps": 6,
                "accelerator": "cpu",
                "log_every": 1,
                "checkpoint_every": 2,
                "keep_checkpoints": 9,
            },
            "stage": {
                "class_path": "train.seecoder.SeeCoderStage",
                "init_args": {
                    "base": str(base),
                    "backbone_weights": str(backbone_folder),
                    "encoder": {
                        **BACKBONE,
                        "context_dim": CONTEXT_DIM,
                        "num_heads": 2,
                        "decoder_layers": 1,
                        "decoder_ffn_dim": 32,
                        "decoder_dropout": 0.1,
                        "query_layers": 3,
                        "query_ffn_dim": 32,
                        "num_global_queries": 1,
                        "num_local_queries": 3,
                    },
                    "optimizer": {"lr": 1e-3, "warmup_steps": min(2, changes.get("run.max_steps", 2))},
                    "ema": {"decay": 0.9},
                    "export_encoder": False,
                },
            },
            "data": {
                "class_path": "train.shard_data.ShardPictures",
                "init_args": {
                    "shards": str(shards),
                    "batch_size": 2,
                    "image_size": 32,
                    "window": 2,
                    "held_out": 4,
                    "held_out_world": True,
                },
            },
        }
        for dotted, value in changes.items():
            *path, last = dotted.split(".")
            place = config
            for name in path:
                place = place[name]
            place[last] = value
        return config

    return make


@pytest.fixture
def fit(tmp_path) -> Callable[..., int]:
    """Run `python -m train fit` in this process on a configuration and more arguments."""

    def run(config: dict[str, Any], *arguments: str) -> int:
        path = tmp_path / "config-in.yaml"
        path.write_text(yaml.safe_dump(json.loads(json.dumps(config))))
        return main(["fit", "--config", str(path), *arguments])

    return run


@pytest.fixture
def load() -> Callable[[Path], dict[str, Any]]:
    """Read a checkpoint."""
    return lambda path: torch.load(path, map_location="cpu", weights_only=True)


@pytest.fixture(scope="session")
def xl_base(tmp_path_factory) -> Path:
    """A base of the SDXL family: two depths of transformers, pooled vector and time ids."""
    folder = write_base(tmp_path_factory.mktemp("xl_base"))
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        cross_attention_dim=CONTEXT_DIM,
        attention_head_dim=2,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=POOLED_DIM + 6 * 4,
    )
    unet.save_pretrained(folder / "unet")
    return folder
