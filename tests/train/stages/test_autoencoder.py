import json

import pytest
import torch
from diffusers import AutoencoderKL, VQModel

from seecoder.images.gate import load_image
from seecoder.weights.safetensors_files import WeightsError
from tests.fixtures.networks import random_lpips
from train.run.metrics_file import read_metrics
from train.settings import OptimizerSettings
from train.stages.autoencoder import AutoencoderLoss, AutoencoderStage
from train.stages.first_stage.reconstruction import latent_std

SIZES = {"block_out_channels": (8, 8, 8), "norm_num_groups": 4}


@pytest.fixture
def autoencoder_config(tmp_path) -> dict:
    return {
        "run": {
            "folder": str(tmp_path / "run"),
            "max_steps": 3,
            "accelerator": "cpu",
            "log_every": 1,
            "checkpoint_every": 3,
        },
        "stage": {
            "class_path": "train.stages.autoencoder.AutoencoderStage",
            "init_args": {
                "optimizer": {"lr": 2e-3},
                "ema": {"decay": 0.9},
                **{k: list(v) if isinstance(v, tuple) else v for k, v in SIZES.items()},
            },
        },
        "data": {
            "class_path": "train.sources.world_data.WorldPictures",
            "init_args": {"batch_size": 4, "pool_size": 16, "held_out": 8, "image_size": 32},
        },
    }


def test_divergence_of_a_standard_normal_is_zero_and_agrees_with_diffusers():
    stage = AutoencoderStage(OptimizerSettings(), loss=AutoencoderLoss(0, 0, 0, kl=1.0), **SIZES)
    batch = {"pixels": torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), "keys": torch.tensor([[0, 0], [0, 1]])}
    posterior = stage.vae.encode(batch["pixels"].float() / 127.5 - 1).latent_dist
    expected = posterior.kl().mean() / posterior.mean[0].numel()
    assert float(stage.loss(batch).detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    with torch.no_grad():
        for name, weight in stage.vae.named_parameters():
            if name.startswith("quant_conv"):
                weight.zero_()
    assert float(stage.loss(batch).detach()) == pytest.approx(0, abs=1e-6)


def test_training_exports_the_averaged_weights_in_half_precision(autoencoder_config, fit, load, tmp_path):
    assert fit(autoencoder_config) == 0
    folder = tmp_path / "run" / "vae"
    exported = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
    averages = load(tmp_path / "run" / "step-00000003.ckpt")["ema"]["averages"]
    state = exported.state_dict()
    assert {f"vae.{name}" for name in state} == set(averages)
    assert all(torch.equal(value, averages[f"vae.{name}"].half().float()) for name, value in state.items())
    factor = json.loads((folder / "config.json").read_text())["scaling_factor"]
    from data.world.scenes import sample_scenes
    from train.sources.world_data import HELD_OUT_SEED, draw_bytes

    pixels = draw_bytes(sample_scenes(8, HELD_OUT_SEED), 32)
    assert latent_std(exported, pixels) * factor == pytest.approx(1, rel=2e-3)


@pytest.mark.heavy
def test_continuing_with_an_adversary_is_exact(autoencoder_config, fit, load, tmp_path):
    config = autoencoder_config
    config["stage"]["init_args"]["adversarial"] = {"start_step": 1, "channels": 8}
    config["run"] |= {"max_steps": 4, "checkpoint_every": 2}
    assert fit(config) == 0
    whole = load(tmp_path / "run" / "step-00000004.ckpt")
    broken = {**config, "run": {**config["run"], "folder": str(tmp_path / "broken"), "max_steps": 2}}
    assert fit(broken) == 0
    assert fit({**broken, "run": {**broken["run"], "max_steps": 4}}) == 0
    again = load(tmp_path / "broken" / "step-00000004.ckpt")
    assert any(name.startswith("discriminator") for name in whole["state_dict"])
    assert all(torch.equal(value, again["state_dict"][name]) for name, value in whole["state_dict"].items())
    moments = [checkpoint["adversary"]["state"][0]["exp_avg"] for checkpoint in (whole, again)]
    assert torch.equal(*moments)
    configs = [(tmp_path / name / "vae" / "config.json").read_text() for name in ("run", "broken")]
    assert configs[0] == configs[1]  # with the scale of the latents


@pytest.mark.parametrize(("levels", "factor"), [(3, 4), (4, 8), (5, 16)])
def test_levels_say_how_much_smaller_latents_are(levels, factor):
    for codebook_size in (None, 6):
        stage = AutoencoderStage(
            OptimizerSettings(), block_out_channels=(4,) * levels, norm_num_groups=2, codebook_size=codebook_size
        )
        encoded = stage.vae.encode(torch.zeros(1, 3, 32, 32))
        latents = encoded.latent_dist.mean if codebook_size is None else encoded.latents
        assert latents.shape == (1, 4, 32 // factor, 32 // factor)


@pytest.mark.parametrize("sizes", [{}, {"codebook_size": 8}])
def test_a_decoder_alone_is_trained_and_latents_stay(autoencoder_config, fit, load, tmp_path, sizes):
    source = AutoencoderStage(OptimizerSettings(), seed=5, **SIZES, **sizes).vae
    source.register_to_config(scaling_factor=0.123)
    source.save_pretrained(tmp_path / "source")
    options = {"init_from": str(tmp_path / "source"), "decoder_only": True, **sizes}
    autoencoder_config["stage"]["init_args"] |= options
    autoencoder_config["data"]["init_args"]["style"] = "outlined"
    assert fit(autoencoder_config) == 0
    exported = type(source).from_pretrained(tmp_path / "run" / "vae", torch_dtype=torch.float32)
    assert exported.config["scaling_factor"] == 0.123
    own = {name: value.half().float() for name, value in source.state_dict().items()}
    changed = {name for name, value in exported.state_dict().items() if not torch.equal(value, own[name])}
    assert changed
    assert {name.partition(".")[0] for name in changed} <= {"decoder", "post_quant_conv"}
    saved = load(tmp_path / "run" / "step-00000003.ckpt")["state_dict"]
    assert {name.split(".")[1] for name in saved} == {"decoder", "post_quant_conv"}
    autoencoder_config["run"]["max_steps"] = 4
    assert fit(autoencoder_config) == 0, "it continues without the frozen half in its checkpoint"


def test_a_decoder_alone_needs_latents_to_keep_and_sizes_that_fit(base):
    with pytest.raises(ValueError, match="`decoder_only`=true needs `init_from`"):
        AutoencoderStage(OptimizerSettings(), decoder_only=True, **SIZES)
    with pytest.raises(WeightsError):
        AutoencoderStage(OptimizerSettings(), init_from=str(base / "vae"), block_out_channels=(8, 8, 8, 16))


def test_gradients_go_straight_through_the_codebook():
    stage = AutoencoderStage(OptimizerSettings(), codebook_size=5, **SIZES)
    latents = torch.randn(2, 4, 3, 3, requires_grad=True)
    vectors, _, (_, _, codes) = stage.vae.quantize(latents)
    assert torch.equal(
        vectors.permute(0, 2, 3, 1).flatten(0, 2).round(decimals=5),
        stage.vae.quantize.embedding(codes).round(decimals=5),
    )
    weights = torch.randn(vectors.shape)
    (gradient,) = torch.autograd.grad((vectors * weights).sum(), latents)
    assert torch.equal(gradient, weights)


def test_the_codebook_is_trained_to_lie_at_the_latents():
    stage = AutoencoderStage(OptimizerSettings(), codebook_size=5, loss=AutoencoderLoss(0, 0, 0), **SIZES)
    batch = {"pixels": torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), "keys": torch.tensor([[0, 0], [0, 1]])}
    loss = stage.loss(batch)
    latents = stage.vae.encode(batch["pixels"].float() / 127.5 - 1).latents
    nearest = torch.cdist(latents.permute(0, 2, 3, 1).flatten(0, 2), stage.vae.quantize.embedding.weight).min(1).values
    expected = 1.25 * nearest.square().mean() / 4  # beta of 0.25, and a mean over 4 channels
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    loss.backward()
    assert float(stage.vae.quantize.embedding.weight.grad.abs().max()) > 0
    assert float(stage.vae.encoder.conv_in.weight.grad.abs().max()) > 0


@pytest.mark.heavy
def test_a_codebook_is_trained_exported_and_its_use_is_logged(autoencoder_config, fit, tmp_path):
    config, lpips = autoencoder_config, tmp_path / "alex.safetensors"
    random_lpips("alex", tmp_path)
    loss = {"absolute": 1.0, "squared": 0.0, "gradient": 0.0, "perceptual": 1.0}
    config["stage"]["init_args"] |= {"codebook_size": 16, "loss": loss, "perceptual_network": str(lpips)}
    config["run"]["evaluate_every"] = 3
    assert fit(config) == 0
    exported = VQModel.from_pretrained(tmp_path / "run" / "vae")
    assert exported.config.num_vq_embeddings == 16
    from data.world.scenes import sample_scenes
    from train.sources.world_data import HELD_OUT_SEED, draw_bytes

    pixels = draw_bytes(sample_scenes(8, HELD_OUT_SEED), 32)
    assert latent_std(exported, pixels) * exported.config.scaling_factor == pytest.approx(1, rel=2e-3)
    figures = read_metrics(tmp_path / "run" / "metrics.csv")
    assert all(1 <= value <= 16 for _, value in figures["codebook_perplexity"])
    assert {"codebook", "codebook_usage", "perceptual"} <= figures.keys()
    assert figures["held_out_perceptual"][0][1] > 0
    sheet = load_image(tmp_path / "run" / "previews" / "step-00000003.png")
    assert sheet.shape[1] > 2 * 32  # pictures, and below them their reconstructions


def test_pictures_of_shards_are_enough_without_any_held_out(autoencoder_config, fit, shards, tmp_path):
    config = autoencoder_config
    config["data"] = {
        "class_path": "train.sources.ShardPictures",
        "init_args": {"batch_size": 4, "shards": str(shards), "image_size": 32},
    }
    assert fit(config) == 0
    assert AutoencoderKL.from_pretrained(tmp_path / "run" / "vae").config.scaling_factor > 0
    assert (tmp_path / "run" / "previews" / "step-00000003.png").is_file()


def test_a_bad_picture_touches_neither_the_autoencoder_nor_the_discriminator(
    autoencoder_config, fit, load, tmp_path, monkeypatch
):
    config = autoencoder_config
    config["stage"]["init_args"]["adversarial"] = {"channels": 8}
    config["run"] |= {"checkpoint_every": 1, "keep_checkpoints": 9, "max_steps": 3}
    whole = AutoencoderStage.loss

    def loss(self, batch):
        value = whole(self, batch)
        if self.global_step == 1:
            self._pairs = [(real, output * float("nan")) for real, output in self._pairs]
            return value * float("nan")
        return value

    monkeypatch.setattr(AutoencoderStage, "loss", loss)
    assert fit(config) == 0
    assert len((tmp_path / "run" / "skipped_steps.jsonl").read_text().splitlines()) == 1
    state = load(tmp_path / "run" / "step-00000003.ckpt")
    assert all(value.isfinite().all() for value in state["state_dict"].values())
    assert float(state["adversary"]["state"][0]["step"]) == 2  # of three steps
