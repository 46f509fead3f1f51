"""Scaling of latents against closed forms in float64, and against what stock pipelines of diffusers do."""

from typing import Any

import numpy as np
import pytest
import torch

from seecoder.base_model.latents import check_scaling, decode_pixels, encode_posterior, scale_latents, unscale_latents

MEAN, STD = (0.1, -0.2, 0.3, 0.4), (1.0, 2.0, 0.5, 1.5)
KINDS: dict[str, dict[str, Any]] = {
    "factor alone": {"scaling_factor": 0.18215},
    "shift": {"scaling_factor": 1.5305, "shift_factor": 0.0609},
    "statistics": {"scaling_factor": 0.5, "latents_mean": MEAN, "latents_std": STD},
}


def closed_form(config: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """z = a * x + b for every channel, as (1, C, 1, 1)."""
    mean = np.array(config.get("latents_mean", [config.get("shift_factor", 0.0)] * 4), dtype=np.float64)
    slope = config["scaling_factor"] / np.array(config.get("latents_std", [1.0] * 4), dtype=np.float64)
    return slope.reshape(1, 4, 1, 1), (-slope * mean).reshape(1, 4, 1, 1)


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn((2, 4, 5, 6), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_scaling_is_the_closed_form_and_unscaling_its_inverse(build, latents, kind):
    vae, (slope, offset) = build["vae"](**KINDS[kind]), closed_form(KINDS[kind])
    scaled = scale_latents(vae, latents)
    np.testing.assert_allclose(scaled.numpy(), slope * latents.numpy() + offset, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(unscale_latents(vae, scaled).numpy(), latents.numpy(), rtol=1e-13, atol=1e-14)
    for dtype in (torch.float16, torch.float32):
        assert scale_latents(vae, latents.to(dtype)).dtype == unscale_latents(vae, latents.to(dtype)).dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
def test_the_posterior_is_scaled_and_its_deviation_not_shifted(build, kind):
    vae, (slope, offset) = build["vae"](**KINDS[kind]), closed_form(KINDS[kind])
    pixels = torch.rand((2, 3, 16, 12), generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = encode_posterior(vae, pixels)
    with torch.no_grad():
        posterior = vae.double().encode(pixels.double()).latent_dist
    np.testing.assert_allclose(mean.numpy(), slope * posterior.mean.numpy() + offset, rtol=0, atol=1e-5)
    np.testing.assert_allclose(std.numpy(), slope * posterior.std.numpy(), rtol=1e-4, atol=0)
    assert mean.dtype == std.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_decoded_pixels_lie_between_0_and_1(build, latents, kind):
    vae, (slope, offset) = build["vae"](**KINDS[kind]), closed_form(KINDS[kind])
    pixels = decode_pixels(vae, latents.float())
    with torch.no_grad():
        expected = vae.double().decode(torch.from_numpy((latents.numpy() - offset) / slope)).sample / 2 + 0.5
    torch.testing.assert_close(pixels, expected.clamp(0, 1).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("one", ["latents_mean", "latents_std"])
def test_one_statistic_alone_says_nothing_as_in_diffusers(build, latents, one):
    vae = build["vae"](scaling_factor=0.5, **{one: MEAN})
    assert torch.equal(scale_latents(vae, latents), 0.5 * latents)
    assert torch.equal(unscale_latents(vae, latents), latents / 0.5)


def test_two_conventions_at_once_are_refused(build, latents):
    vae = build["vae"](shift_factor=0.5, latents_mean=MEAN, latents_std=STD)
    for function in (scale_latents, unscale_latents):
        with pytest.raises(ValueError, match=r"`shift_factor`=0\.5 of the autoencoder must be null"):
            function(vae, latents)


def test_an_sdxl_pipeline_of_diffusers_scales_statistics_in_the_same_way(build, picture):
    from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

    vae = build["vae"](**KINDS["statistics"], force_upcast=False)
    sizes = {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 20 + 6 * 4}
    unet = build["unet"](addition_embed_type="text_time", **sizes)
    parts = {"vae": vae, "unet": unet, "scheduler": build["scheduler"]()}
    absent: Any = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    stock = StableDiffusionXLImg2ImgPipeline(**parts, **absent, requires_aesthetics_score=False)
    pixels = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
    arguments = (torch.tensor([0]), 1, 1, torch.float32, torch.device("cpu"))
    theirs = stock.prepare_latents(pixels, *arguments, torch.Generator().manual_seed(3), add_noise=False)
    with torch.no_grad():
        drawn = vae.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(3))
    assert torch.equal(scale_latents(vae, drawn), theirs)
    text: Any = StableDiffusionXLPipeline(**parts, **absent)
    text.set_progress_bar_config(disable=True)
    zeros = {"prompt_embeds": torch.zeros(1, 3, 32), "pooled_prompt_embeds": torch.zeros(1, 20)}
    options: Any = {"num_inference_steps": 1, "guidance_scale": 1.0, "height": 16, "width": 16, "latents": theirs}
    last = text(**zeros, **options, output_type="latent").images
    shown = text(**zeros, **options, output_type="pt").images
    torch.testing.assert_close(decode_pixels(vae, last), shown, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "changes", [{"latents_mean": [0.0] * 3}, {"latents_std": [1.0, 2.0]}, {"latents_std": [0.0] * 4}]
)
def test_statistics_that_are_not_those_of_the_channels_are_refused(changes):
    config = {"latent_channels": 4, "latents_mean": MEAN, "latents_std": STD}
    check_scaling(config)
    with pytest.raises(ValueError, match="must be 4 numbers each"):
        check_scaling({**config, **changes})


@pytest.mark.parametrize("factor", [None, 0.0, float("nan"), "0.18"])
def test_a_factor_that_no_latents_can_have_is_refused(factor):
    with pytest.raises(ValueError, match=r"`scaling_factor`=.* must be a number above 0"):
        check_scaling({"scaling_factor": factor})
