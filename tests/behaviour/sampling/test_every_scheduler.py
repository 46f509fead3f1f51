"""Every scheduler of diffusers: as in diffusers' own pipeline, with every method, at odd numbers of steps."""

import inspect
import re
import warnings
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline

from seecoder import SeeCoderPipeline
from seecoder.base_model.schedulers import scheduler_from_config
from seecoder.sampling import DemoFusion, MultiDiffusion, RectifiedHR, SyncDiffusion, sample
from seecoder.sampling.methods.perceptual import pyramid_distance
from seecoder.sampling.stepper import check_steps

BETAS = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "timestep_spacing": "leading",
    "skip_prk_steps": True,
}
EDM = {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0}


def made(name: str, **changes: Any) -> Any:
    """A scheduler with Stable Diffusion's schedule, or with Playground's."""
    return scheduler_from_config({**(EDM if name.startswith("EDM") else BETAS), **changes, "_class_name": name})


def serving() -> list[str]:
    """Names of all schedulers of diffusers that can be made for a base."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of numpy, inside diffusers
        for name in dir(diffusers):
            try:
                made(name)
                found.append(name)
            except ValueError:
                continue
    return found


SERVING = serving()
METHODS = {
    "plain": None,
    "MultiDiffusion": MultiDiffusion(stride=4),
    "DemoFusion": DemoFusion(),
    "RectifiedHR": RectifiedHR(switch_at=(0.5,)),
    "SyncDiffusion": SyncDiffusion(stride=4, sync_threshold=0.5, loss=pyramid_distance),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "as the base has it": {},
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "zero terminal SNR": {
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
    },
    "SDE": {"algorithm_type": "sde-dpmsolver++"},
}


@pytest.fixture
def toy() -> Callable[..., torch.Tensor]:
    """A denoiser that sees neighbours, and never says NaN by itself."""
    layer = torch.nn.Conv2d(4, 4, 3, padding=1).double().requires_grad_(False)
    return lambda latents, timestep, context: 0.5 * latents + 0.3 * torch.tanh(layer(latents))


def sampled(denoiser: Callable[..., torch.Tensor], scheduler: Any, steps: int, method: Any = None) -> torch.Tensor:
    """Latents of twice the width that the denoiser knows."""
    return sample(
        denoiser,
        scheduler,
        latent_shape=(1, 4, 8, 16),
        native_size=(8, 8),
        num_inference_steps=steps,
        context=torch.zeros((1, 2, 2), dtype=torch.float64),
        generator=torch.Generator().manual_seed(0),
        method=method,
        decoder=lambda latents: latents[:, :3],
        encoder=lambda pixels: torch.cat([pixels, pixels[:, :1]], dim=1),
    )


def test_every_scheduler_that_diffusers_exchanges_in_its_pipelines_is_here() -> None:
    assert {entry.name for entry in diffusers.schedulers.KarrasDiffusionSchedulers} <= {*SERVING, "EDMEulerScheduler"}


@pytest.mark.parametrize("name", [name for name in SERVING if name != "DPMSolverSDEScheduler"])
def test_native_latents_are_those_of_the_stock_pipeline(name: str, tiny_unet: Any, tiny_vae: Any) -> None:
    """A repaired scheduler too: without clip_sample and with an offset of 0, as old configurations are."""
    context = torch.randn((1, 6, 32), generator=torch.Generator().manual_seed(3))
    shared: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
    for changes in ({}, {"clip_sample": True, "steps_offset": 0}):
        stock = StableDiffusionPipeline(
            tiny_vae, None, None, tiny_unet, made(name, **changes), None, None, requires_safety_checker=False
        )
        ours = SeeCoderPipeline(tiny_vae, tiny_unet, made(name, **changes))
        for pipe in (stock, ours):
            pipe.set_progress_bar_config(disable=True)
        expected = stock(
            prompt_embeds=context,
            negative_prompt_embeds=torch.zeros_like(context),
            generator=torch.Generator().manual_seed(0),
            height=16,
            width=16,
            **shared,
        ).images
        found = ours(context=context, generator=torch.Generator().manual_seed(0), **shared)
        assert found.notes == []
        assert torch.allclose(found.images, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SERVING)
def test_every_method_samples_with_it(name: str, toy: Callable[..., torch.Tensor]) -> None:
    for label, method in METHODS.items():
        assert sampled(toy, made(name), 4, method).isfinite().all(), label


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", SERVING)
def test_settings_of_schedulers_give_finite_samples_from_one_step_up(
    name: str, variant: str, toy: Callable[..., torch.Tensor]
) -> None:
    accepted = inspect.signature(type(made(name)).__init__).parameters
    if not set(VARIANTS[variant]) <= set(accepted) or (variant == "SDE" and "DPMSolver" not in name):
        pytest.skip("it has no such setting")
    scheduler = made(name, **VARIANTS[variant])
    for steps in (1, 3):
        assert sampled(toy, scheduler, steps).isfinite().all(), steps


@pytest.mark.parametrize("name", SERVING)
def test_more_steps_than_the_schedule_has_are_made_or_refused_in_one_line(name: str) -> None:
    check_steps(made(name), 50, 0.0)
    for steps in (1000, 1001, 3000):
        refusal = ""
        try:
            check_steps(made(name), steps, 0.0)
        except ValueError as error:
            refusal = str(error)
        assert re.fullmatch(rf"(`num_inference_steps`={steps} must be a number of steps that .+)?", refusal)
        if steps > 1000 and not hasattr(made(name), "sigmas"):
            assert refusal, "there is nothing between two entries of its table"
