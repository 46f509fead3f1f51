"""What a network predicts, and how many histories a scheduler keeps, changes no trajectory."""

import pytest
import torch

from seecoder.sampling import (
    DemoFusion,
    HiDiffusion,
    MultiDiffusion,
    RectifiedHR,
    ScaleCrafter,
    SyncDiffusion,
    sample,
)
from seecoder.sampling.methods.perceptual import pyramid_distance
from seecoder.sampling.views import windows

SYNC = SyncDiffusion(stride=4, sync_threshold=1.0, loss=pyramid_distance)
SMALL = {"native_size": (8, 8), "num_inference_steps": 6}


def assert_parametrisations_agree(denoiser, run, make_scheduler, relative) -> None:
    """`run(denoiser, prediction_type)` gives the same for a noise-predicting network and its v-predicting twin."""
    alphas = make_scheduler("ddim").alphas_cumprod.double()

    def velocity(latents, timestep, context):
        signal, spread = alphas[int(timestep)] ** 0.5, (1 - alphas[int(timestep)]) ** 0.5
        return (denoiser(latents, timestep, context) - spread * latents) / signal

    assert relative(run(velocity, "v_prediction"), run(denoiser, "epsilon")) < 1e-5


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm", "unipc"])
@pytest.mark.parametrize(
    "method",
    [None, MultiDiffusion(), DemoFusion(), RectifiedHR(switch_at=(0.5,), guidance_boost=(2.0,)), SYNC],
    ids=lambda method: type(method).__name__,
)
def test_check_23_noise_and_v_prediction_give_one_trajectory(
    name, method, make_scheduler, make_denoiser, context, relative
) -> None:
    def run(network, prediction_type):
        return sample(
            network,
            make_scheduler(name, prediction_type=prediction_type),
            latent_shape=(1, 4, 16, 16),
            context=context[:1],
            negative_context=context[1:2],
            guidance_scale=2.0,
            generator=torch.Generator().manual_seed(0),
            method=method,
            decoder=lambda latents: latents[:, :3],
            encoder=lambda pixels: torch.cat([pixels, pixels[:, :1]], dim=1),
            **SMALL,
        )

    assert_parametrisations_agree(make_denoiser(), run, make_scheduler, relative)


@pytest.mark.parametrize(
    "method",
    [
        ScaleCrafter(damping={"mid": 1.5}, damp_tau=0.7, disperse=["level.2"]),
        HiDiffusion(),
        [ScaleCrafter(), DemoFusion()],
    ],
    ids=["ScaleCrafter", "HiDiffusion", "both"],
)
def test_check_23_with_every_change_of_the_network(
    method, make_scheduler, make_unet, denoiser_of, context, relative
) -> None:
    unet = make_unet()

    def run(network, prediction_type):
        return sample(
            network,
            make_scheduler("euler", prediction_type=prediction_type),
            latent_shape=(1, 4, 32, 32),
            native_size=(16, 16),
            num_inference_steps=3,
            context=context[:1],
            negative_context=context[1:2],
            guidance_scale=2.0,
            generator=torch.Generator().manual_seed(0),
            method=method,
            unet=unet,
        )

    assert_parametrisations_agree(denoiser_of(unet), run, make_scheduler, relative)


def test_check_24_one_history_equals_a_history_per_view(make_scheduler, make_denoiser, context, relative) -> None:
    """DPM-Solver++ 2M over static windows: per-view schedulers, averaged after each step, as diffusers does it."""
    denoiser, steps = make_denoiser(), 8
    noise = torch.randn((1, 4, 8, 20), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    views = windows((8, 20), (8, 8), (4, 4))
    schedulers = [make_scheduler("dpm") for _ in views]
    for scheduler in schedulers:
        scheduler.set_timesteps(steps)
    latents = noise.clone()
    count = torch.zeros_like(noise)
    for view in views:
        view.scatter_add(count, torch.ones(view.size, dtype=torch.float64))
    with torch.no_grad():
        for timestep in schedulers[0].timesteps:
            total = torch.zeros_like(latents)
            for view, scheduler in zip(views, schedulers, strict=True):
                part = view.gather(latents)
                output = denoiser(part, timestep, context[:1])
                view.scatter_add(total, scheduler.step(output, timestep, part, return_dict=False)[0])
            latents = total / count
    actual = sample(
        denoiser,
        make_scheduler("dpm"),
        latent_shape=(1, 4, 8, 20),
        native_size=(8, 8),
        num_inference_steps=steps,
        context=context[:1],
        latents=noise,
        method=MultiDiffusion(stride=4),
    )
    assert relative(actual, latents) < 1e-6
