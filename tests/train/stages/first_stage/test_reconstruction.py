import pytest
import torch

from train.settings import OptimizerSettings
from train.stages.autoencoder import AutoencoderStage
from train.stages.first_stage.reconstruction import (
    check_autoencoder,
    codebook_figures,
    latent_std,
    mean_psnr,
    reconstruct,
    reconstruction_terms,
)
from train.stages.stage import save_half

SIZES = {"block_out_channels": (8, 8, 8), "norm_num_groups": 4}


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


class _Posterior:
    def __init__(self, mean, std):
        self.mean, self.std = mean, std
        self.latent_dist = self


class _Encoder:
    """Latents of known spread: mean of variance 4 around 10, posterior variance 5; total 9."""

    device = torch.device("cpu")

    def encode(self, pixels):
        mean = 10 + 2 * torch.randn(len(pixels), 4, 64, 64, generator=torch.Generator().manual_seed(0))
        return _Posterior(mean, torch.full_like(mean, 5.0**0.5))


def test_latent_std_is_that_of_samples_of_the_posterior():
    assert latent_std(_Encoder(), torch.zeros(64, 3, 8, 8, dtype=torch.uint8)) == pytest.approx(3.0, rel=0.01)


def test_psnr_of_a_known_error():
    pixels = torch.full((3, 3, 8, 8), 100, dtype=torch.uint8)
    output = pixels.float() / 127.5 - 1 + 0.02  # a hundredth of the range
    assert mean_psnr(output, pixels) == pytest.approx(40, abs=1e-3)


def test_use_of_a_codebook():
    figures = codebook_figures(torch.tensor([[0, 0], [3, 3]]), 8)
    assert float(figures["codebook_usage"]) == 2 / 8
    assert float(figures["codebook_perplexity"]) == pytest.approx(2)
    assert float(codebook_figures(torch.zeros(5, dtype=torch.long), 8)["codebook_perplexity"]) == 1


def test_latents_of_a_codebook_are_those_before_quantisation():
    stage = AutoencoderStage(OptimizerSettings(), codebook_size=6, **SIZES)
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        latents = stage.vae.encode(pixels.float() / 127.5 - 1).latents
        expected = stage.vae(pixels.float() / 127.5 - 1).sample.clamp(-1, 1)
    assert latent_std(stage.vae, pixels) == pytest.approx(float(latents.std(correction=0)), rel=1e-5)
    torch.testing.assert_close(reconstruct(stage.vae, pixels, batch_size=2), expected, rtol=0, atol=1e-5)


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
