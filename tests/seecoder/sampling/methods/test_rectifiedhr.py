import math

import numpy as np
import pytest
import torch

from seecoder.sampling import RectifiedHR, ScaleCrafter, sample

OPTIONS = {"native_size": (16, 16), "num_inference_steps": 50}


def double(pixels):
    return torch.nn.functional.avg_pool2d(pixels, 2).mean(dim=1, keepdim=True).expand(-1, 4, -1, -1)


def halve(latents):
    return latents[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.parametrize(("scale", "evaluations"), [(1, 50), (2, 80), (4, 140)])
def test_evaluations_in_native_windows(scale, evaluations, make_scheduler, context) -> None:
    counted = 0.0

    def silent(latents, timestep, context):
        nonlocal counted
        counted += latents.shape[2] * latents.shape[3] / 256
        return torch.zeros_like(latents)

    sample(
        silent,
        make_scheduler("ddim"),
        latent_shape=(1, 4, 16 * scale, 16 * scale),
        context=context[:1],
        method=RectifiedHR(),
        decoder=halve,
        encoder=double,
        **OPTIONS,
    )
    assert counted == evaluations


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm"])
def test_the_trajectory_goes_on_at_the_noise_level_of_its_next_step(name, make_scheduler, context) -> None:
    """A perfect denoiser of a zero picture leaves pure noise, whose deviation shows the level."""
    scheduler = make_scheduler(name)
    scheduler.set_timesteps(50)
    alphas = make_scheduler("ddim").alphas_cumprod
    levels = {}

    def perfect(latents, timestep, context):
        spread = float((1 - alphas[int(timestep)]) ** 0.5)
        levels[int(timestep), latents.shape[-1]] = float(latents.std()) / spread
        return latents / spread

    sample(
        perfect,
        make_scheduler(name),
        latent_shape=(1, 4, 32, 32),
        context=context[:1],
        generator=torch.Generator().manual_seed(0),
        method=RectifiedHR(resize_in="latents"),
        **OPTIONS,
    )
    assert sorted(side for _, side in levels) == [16] * 40 + [32] * 10
    switch = max(timestep for timestep, side in levels if side == 32)
    assert levels[switch, 32] == pytest.approx(1.0, abs=0.05)


def test_guidance_rises_after_the_change(make_scheduler, context) -> None:
    def telling(latents, timestep, context):
        return context.mean(dim=(1, 2)).view(-1, 1, 1, 1).expand_as(latents)

    reached = []
    ones = torch.ones((1, 5, 8), dtype=torch.float64)
    sample(
        telling,
        make_scheduler("ddim"),
        latent_shape=(1, 4, 32, 32),
        context=ones,
        negative_context=torch.zeros_like(ones),
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(0),
        method=RectifiedHR(resize_in="latents"),
        on_step=lambda progress: reached.append(progress.latents),
        **OPTIONS,
    )
    scheduler = make_scheduler("ddim")
    scheduler.set_timesteps(50)
    expected = scheduler.step(torch.full_like(reached[43], 30.0), scheduler.timesteps[44], reached[43]).prev_sample
    assert torch.allclose(reached[44], expected, rtol=1e-6)


def test_stages_at_most_double_while_there_are_switches_left() -> None:
    assert RectifiedHR().sizes((128, 128), (64, 64)) == [(64, 64), (128, 128)]
    assert RectifiedHR().sizes((256, 256), (64, 64)) == [(64, 64), (128, 128), (256, 256)]
    assert RectifiedHR().sizes((64, 64), (64, 64)) == [(64, 64)]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (RectifiedHR(), 'needs `decoder` and `encoder`. Give them, or set resize_in="latents"'),
        (RectifiedHR(switch_at=(1.0, 1.0), resize_in="latents"), "leaves a stage without steps"),
        (RectifiedHR(guidance_boost=()), "`guidance_boost` has 0 factors; give one for each change"),
    ],
)
def test_what_does_not_fit_is_refused(method, message, make_scheduler, make_denoiser, context) -> None:
    with pytest.raises(ValueError, match=message):
        sample(
            make_denoiser(),
            make_scheduler("ddim"),
            latent_shape=(1, 4, 32, 32),
            context=context[:1],
            method=method,
            **OPTIONS,
        )


def test_a_changed_network_needs_no_boost(make_unet, denoiser_of, make_scheduler, context) -> None:
    """With boosts of one the published method is the same but for its guidance: what differs is that alone."""
    unet = make_unet()

    def enlarge(methods) -> torch.Tensor:
        return sample(
            denoiser_of(unet),
            make_scheduler("ddim"),
            latent_shape=(1, 4, 32, 32),
            context=context[:1],
            negative_context=0 * context[:1],
            guidance_scale=2.0,
            method=methods,
            unet=unet,
            native_size=(16, 16),
            num_inference_steps=10,
            generator=torch.Generator().manual_seed(0),
        )

    options = {"resize_in": "latents"}
    still = ScaleCrafter(dilation={"level.1": 1.0})  # composes, and changes nothing
    composed = enlarge([still, RectifiedHR(**options)])
    torch.testing.assert_close(composed, enlarge([RectifiedHR(guidance_boost=(1.0, 1.0), **options)]), atol=0, rtol=0)
    assert (composed - enlarge([RectifiedHR(**options)])).abs().max() > 1e-3
    assert RectifiedHR().boosts(network_changes=True) == (1.0, 1.0)
    assert RectifiedHR().boosts() == (6.0, 10.0)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm", "heun", "dpm2"])
def test_the_preview_of_a_stage_that_ends_on_the_way_is_the_predicted_clean_picture(name, make_scheduler, context):
    """A network that knows the picture, 0.7 everywhere, predicts it at any step; the sample is noisy until the end."""
    alphas = make_scheduler("ddim").alphas_cumprod.double()
    levels = ((1.0 - alphas) / alphas).sqrt().log().numpy()
    previews = []

    def knowing(latents, timestep, context):
        level = math.exp(np.interp(float(timestep), range(1000), levels))  # half steps lie between two timesteps
        alpha = 1.0 / math.hypot(1.0, level)
        return (latents - alpha * 0.7) / (alpha * level)

    latents = sample(
        knowing,
        make_scheduler(name),
        latent_shape=(1, 4, 64, 64),
        context=context[:1],
        generator=torch.Generator().manual_seed(0),
        method=RectifiedHR(resize_in="latents"),
        on_stage=lambda end: previews.append(end.latents),
        **OPTIONS,
    )
    assert [preview.shape[-1] for preview in previews] == [16, 32, 64]
    assert previews[-1] is latents
    for preview in previews[:2]:
        assert torch.allclose(preview, torch.full_like(preview, 0.7), atol=1e-5)
