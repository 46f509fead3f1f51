import json

import pytest
import torch
from diffusers import AutoencoderKL

from train.settings import OptimizerSettings
from train.stages.autoencoder import (
    AutoencoderLoss,
    AutoencoderStage,
    check_autoencoder,
    latent_std,
    mean_psnr,
    reconstruction_terms,
)
from train.stages.stage import save_half

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


def test_loss_terms_against_their_definitions():
    torch.manual_seed(0)
    output, target = torch.randn(2, 2, 3, 5, 7).unbind(0)
    terms = reconstruction_terms(output, target)
    assert float(terms["absolute"]) == pytest.approx(float((output - target).abs().mean()))
    assert float(terms["squared"]) == pytest.approx(float(((output - target) ** 2).mean()))
    down = (output[:, :, 1:] - output[:, :, :-1]) - (target[:, :, 1:] - target[:, :, :-1])
    across = (output[..., 1:] - output[..., :-1]) - (target[..., 1:] - target[..., :-1])
    assert float(terms["gradient"]) == pytest.approx(float(down.abs().mean() + across.abs().mean()))
    shifted = reconstruction_terms(target + 0.3, target)  # a constant shift has no gradient difference
    assert float(shifted["gradient"]) == pytest.approx(0, abs=1e-6)


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


class _Posterior:
    def __init__(self, mean, var):
        self.mean, self.var = mean, var
        self.latent_dist = self


class _Encoder:
    """Latents of known spread: mean of variance 4 around 10, posterior variance 5; total 9."""

    device = torch.device("cpu")

    def encode(self, pixels):
        mean = 10 + 2 * torch.randn(len(pixels), 4, 64, 64, generator=torch.Generator().manual_seed(0))
        return _Posterior(mean, torch.full_like(mean, 5.0))


def test_latent_std_is_that_of_samples_of_the_posterior():
    assert latent_std(_Encoder(), torch.zeros(64, 3, 8, 8, dtype=torch.uint8)) == pytest.approx(3.0, rel=0.01)


def test_psnr_of_a_known_error():
    class Shift:
        device = torch.device("cpu")

        def encode(self, pixels):
            self.pixels = pixels
            return type("", (), {"latent_dist": self})

        def mode(self):
            return self.pixels

        def decode(self, latents):
            return type("", (), {"sample": latents + 0.02})  # a hundredth of the range

    assert mean_psnr(Shift(), torch.full((3, 3, 8, 8), 100, dtype=torch.uint8)) == pytest.approx(40, abs=1e-3)


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


def test_a_broken_export_is_noticed(tmp_path):
    stage = AutoencoderStage(OptimizerSettings(), **SIZES)
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    factor = 1 / latent_std(stage.vae, pixels)
    save_half(stage.vae, tmp_path / "vae", scaling_factor=factor)
    check_autoencoder(stage.vae, pixels, tmp_path / "vae")
    save_half(stage.vae, tmp_path / "vae", scaling_factor=1.1 * factor)
    with pytest.raises(RuntimeError, match=r"standard deviation of 1\.1"):
        check_autoencoder(stage.vae, pixels, tmp_path / "vae")
    save_half(stage.vae, tmp_path / "vae", scaling_factor=factor)
    with torch.no_grad():
        stage.vae.decoder.conv_out.bias.add_(0.2)
    with pytest.raises(RuntimeError, match="differs"):
        check_autoencoder(stage.vae, pixels, tmp_path / "vae")


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
