"""SyncDiffusion in whole runs: whom the windows follow, what is kept for the gradient, control around a closed loop."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from seecoder.sampling import Control, SyncDiffusion, sample
from seecoder.sampling.methods.perceptual import pyramid_distance

SETTINGS = SyncDiffusion(stride=4, sync_threshold=1.0, loss=pyramid_distance)


@pytest.fixture
def follow(make_scheduler, context):
    """(picture, first column) of the window that every window is compared with, for two pictures in one batch."""

    def run(settings: SyncDiffusion, width: int) -> list[tuple[int, int]]:
        scheduler, seen = make_scheduler("ddim"), []
        scheduler.set_timesteps(1)
        signal = scheduler.alphas_cumprod[scheduler.timesteps[0]].sqrt()

        def loss(pictures, references):
            seen.extend((references[:, 0, 0, 0] * signal).round().int().tolist())
            return (pictures - references).square().sum(dim=(1, 2, 3))

        places = torch.arange(float(width), dtype=torch.float64).expand(1, 4, 8, width)
        sample(
            lambda latents, timestep, context: torch.zeros_like(latents),
            make_scheduler("ddim"),
            latent_shape=(2, 4, 8, width),
            native_size=(8, 8),
            num_inference_steps=1,
            context=context[:2],
            latents=torch.cat([places, 100.0 + places]),
            method=replace(settings, loss=loss),
            decoder=lambda latents: latents[:, :3],
            view_batch_size=2,
        )
        return [divmod(place, 100) for place in seen]

    return run


@pytest.mark.parametrize(
    ("anchor", "closed_loop", "left"),
    [
        ("first", False, 0),
        ("first", True, 0),
        ("middle", False, 8),
        ("middle", True, 8),  # by its place; the released choice, number 3 of the 6, is not the middle of a loop
        (1, False, 4),
        (-1, False, 12),
        (5, True, 20),  # goes around the border
        (-6, True, 0),
    ],
)
def test_every_window_follows_its_own_pictures_anchor(anchor, closed_loop, left, follow) -> None:
    width = 24 if closed_loop else 20
    followed = follow(replace(SETTINGS, anchor=anchor, closed_loop=closed_loop), width)
    others = (6 if closed_loop else 4) - 1
    assert followed == [(0, left)] * others + [(1, left)] * others


@pytest.mark.parametrize("anchor", [4, -5])
def test_an_anchor_beyond_the_windows_is_refused(anchor, follow) -> None:
    with pytest.raises(ValueError, match=f"`anchor`={anchor} is none of the 4 windows"):
        follow(replace(SETTINGS, anchor=anchor), 20)


def decoder(latents: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(torch.tanh(latents[:, :3]), scale_factor=2, mode="nearest")


def test_the_network_runs_again_for_the_gradient_and_is_not_kept(make_scheduler, make_denoiser, context) -> None:
    denoiser = make_denoiser()
    sample(
        denoiser,
        make_scheduler("ddim"),
        latent_shape=(1, 4, 8, 20),
        native_size=(8, 8),
        num_inference_steps=1,
        context=context[:1],
        negative_context=torch.zeros_like(context[:1]),
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(0),
        method=SETTINGS,
        decoder=decoder,
        view_batch_size=2,
    )
    rows = [len(latents) for latents, _ in denoiser.calls]
    # Two branches each of: the anchor; two windows, twice; the third, twice; and all four, to be denoised.
    assert rows == [2, 4, 4, 2, 2, 4, 4]


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_control_goes_around_a_closed_loop(guidance_scale, make_scheduler, make_denoiser, context, relative) -> None:
    """Noise and control picture rolled by one window, and the next window as the anchor: the same panorama, rolled."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((2, 4, 8, 24), generator=generator, dtype=torch.float64)
    picture = torch.rand((2, 4, 16, 48), generator=generator, dtype=torch.float64)
    network = make_denoiser()

    def residuals(latents, timestep, context, image):
        return {"residual": torch.tanh(functional.avg_pool2d(image, 2) + 0.1 * latents)}

    def run(noise, picture, anchor):
        return sample(
            lambda latents, timestep, context, residual: network(latents + residual, timestep, context) + residual,
            make_scheduler("ddim"),
            latent_shape=(2, 4, 8, 24),
            native_size=(8, 8),
            num_inference_steps=3,
            context=context[:2],
            negative_context=torch.zeros_like(context[:1]),
            guidance_scale=guidance_scale,
            latents=noise,
            method=replace(SETTINGS, closed_loop=True, anchor=anchor),
            decoder=decoder,
            control=Control(picture, residuals, pixels_per_cell=2),
        )

    expected = run(noise, picture, 0).roll(4, -1)
    assert relative(run(noise.roll(4, -1), picture.roll(8, -1), 1), expected) < 1e-9
    assert relative(run(noise.roll(4, -1), picture, 1), expected) > 1e-2
    assert relative(run(noise.roll(4, -1), picture.roll(8, -1), 0), expected) > 1e-6
