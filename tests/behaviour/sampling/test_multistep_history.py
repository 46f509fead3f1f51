"""After a large edit a multistep scheduler begins anew: earlier predictions were about another sample."""

import pytest
import torch

from seecoder.sampling import DemoFusion, SyncDiffusion, sample
from seecoder.sampling.methods.demofusion.dilated_sampling import statistics, with_statistics
from seecoder.sampling.methods.demofusion.skip_residual import cosine_decay, skip_weight

STEPS = 8
MULTISTEP = ["dpm", "unipc"]
# The schedulers keep their sigmas in float32 (2^-24 = 6e-8 each); what is left of a forgotten restart is over 1e-3.
TOLERANCE = 1e-6


def first_order(scheduler, output, latents, index) -> torch.Tensor:
    """The step of DDIM between two noise levels: first order, as it knows of no other prediction."""
    (alpha, sigma), (alpha_next, sigma_next) = (
        (1.0 / (1.0 + level**2) ** 0.5, level / (1.0 + level**2) ** 0.5)
        for level in scheduler.sigmas[index : index + 2].double().tolist()
    )
    return alpha_next * (latents - sigma * output) / alpha + sigma_next * output


def edited_loop(make, denoiser, context, latents, edit, large, relative) -> torch.Tensor:
    """Steps with an edit before each; from a large one on another scheduler, which has seen nothing yet."""
    scheduler = make()
    scheduler.set_timesteps(STEPS)
    for index, timestep in enumerate(scheduler.timesteps):
        latents = edit(latents, index, timestep)
        output = denoiser(latents, timestep, context)
        if large(index, timestep):
            scheduler = make()
            scheduler.set_timesteps(STEPS)
            scheduler.set_begin_index(index)
        stepped = scheduler.step(output, timestep, latents, return_dict=False)[0]
        if large(index, timestep):
            assert relative(stepped, first_order(scheduler, output, latents, index)) < TOLERANCE
        latents = stepped
    return latents


@pytest.mark.parametrize("name", MULTISTEP)
def test_check_24_a_skip_residual_leaves_no_history(name, make_scheduler, make_denoiser, context, relative) -> None:
    """A given picture of the native size is redrawn in one phase without windows or lattices."""
    picture = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scheduler = make_scheduler(name)
    scheduler.set_timesteps(STEPS)
    noised = [scheduler.add_noise(picture, noise, timestep[None]) for timestep in scheduler.timesteps]
    weights = [skip_weight(cosine_decay(float(timestep), 1000), 3.0) for timestep in scheduler.timesteps]
    large = [weight > 0.01 for weight in weights]
    assert large == [True] * 6 + [False] * 2  # the sixth goes into the history of the seventh, which is of second order
    expected = edited_loop(
        lambda: make_scheduler(name),
        make_denoiser(),
        context[:1],
        noised[0],
        lambda latents, index, timestep: torch.lerp(latents, noised[index], weights[index]),
        lambda index, timestep: large[index],
        relative,
    )
    actual = sample(
        make_denoiser(),
        make_scheduler(name),
        latent_shape=(1, 4, 8, 8),
        native_size=(8, 8),
        num_inference_steps=STEPS,
        context=context[:1],
        generator=torch.Generator().manual_seed(0),
        method=DemoFusion(skip_dead_steps=False),
        image_latents=picture,
    )
    assert relative(actual, with_statistics(expected, *statistics(picture))) < TOLERANCE


@pytest.mark.parametrize("name", MULTISTEP)
def test_check_24_a_synchronising_step_leaves_no_history(name, make_scheduler, context, relative) -> None:
    """Two windows side by side, the right of which is moved by a gradient that is known in closed form."""
    alphas = make_scheduler("ddim").alphas_cumprod.double()

    def proportional(latents, timestep, context):
        return latents * (float(timestep) / 2000)

    def edit(latents, index, timestep):
        if index >= 4:
            return latents
        alpha, sigma = float(alphas[timestep]) ** 0.5, float(1.0 - alphas[timestep]) ** 0.5
        slope = (1.0 - sigma * float(timestep) / 2000) / alpha  # of the predicted original
        moved = latents.clone()
        moved[:, :3, :, 8:] -= 0.95**index * slope  # the decoder shows three channels
        return moved

    noise = torch.randn((1, 4, 8, 16), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scheduler = make_scheduler(name)
    expected = edited_loop(
        lambda: make_scheduler(name), proportional, None, noise, edit, lambda index, timestep: index < 4, relative
    )

    def loss(pictures: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        return pictures.sum(dim=(1, 2, 3))

    actual = sample(
        proportional,
        scheduler,
        latent_shape=(1, 4, 8, 16),
        native_size=(8, 8),
        num_inference_steps=STEPS,
        context=context[:1],
        latents=noise,
        method=SyncDiffusion(stride=8, sync_weight=1.0, sync_threshold=0.5, anchor="first", loss=loss),
        decoder=lambda latents: latents[:, :3],
    )
    assert relative(actual, expected) < TOLERANCE
