import inspect
import subprocess
import sys

import pytest
import torch

from seecoder.sampling import Control, DemoFusion, MultiDiffusion, sample
from seecoder.sampling.randomness import Randomness

SMALL = {"native_size": (8, 8), "num_inference_steps": 6}


def plain_loop(denoiser, scheduler, noise, context, negative, steps, scale, generators, **options):
    """The loop that diffusers' own pipelines run."""
    scheduler.set_timesteps(steps)
    latents = noise * scheduler.init_noise_sigma
    keywords = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            inputs = scheduler.scale_model_input(torch.cat([latents, latents]), timestep)
            output = denoiser(inputs, timestep, torch.cat([negative, context]))
            unconditional, conditional = output.chunk(2)
            guided = unconditional + scale * (conditional - unconditional)
            latents = scheduler.step(guided, timestep, latents, return_dict=False, **keywords, **options)[0]
    return latents


@pytest.mark.parametrize(
    "name", ["ddim", "ddim_eta", "euler", "euler_ancestral", "dpm", "unipc", "lcm", "pndm", "heun"]
)
def test_check_01_one_window_is_the_plain_loop_bit_for_bit(name, make_scheduler, make_denoiser, context, seeds) -> None:
    options = {"eta": 0.7} if name == "ddim_eta" else {}
    scheduler = make_scheduler(name.removesuffix("_eta"))
    denoiser, context = make_denoiser(dtype=torch.float32), context[:2].float()
    generators = seeds(1, 2)
    noise = torch.cat([torch.randn((1, 4, 8, 8), generator=generator) for generator in generators])
    negative = torch.zeros_like(context)
    expected = plain_loop(denoiser, scheduler, noise, context, negative, 6, 3.0, generators, **options)
    methods = (None, MultiDiffusion(), DemoFusion())
    for method in methods[:2] if name == "pndm" else methods:  # in the place of PNDM DemoFusion has DDIM
        actual = sample(
            denoiser,
            make_scheduler(name.removesuffix("_eta")),
            latent_shape=(2, 4, 8, 8),
            context=context,
            negative_context=negative,
            guidance_scale=3.0,
            generator=seeds(1, 2),
            method=method,
            **SMALL,
            **options,
        )
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("method", [None, MultiDiffusion(jitter=2), DemoFusion()], ids=lambda m: type(m).__name__)
def test_check_05_batch_and_micro_batch_do_not_matter(method, make_scheduler, make_denoiser, context, seeds, relative):
    """With fresh noise in every step, which is where streams get mixed up."""

    def run(pictures: slice, view_batch_size: int, generator):
        rows = context[pictures]
        return sample(
            make_denoiser(),
            make_scheduler("euler_ancestral"),
            latent_shape=(len(rows), 4, 16, 12),
            context=rows,
            negative_context=torch.zeros_like(rows[:1]),
            guidance_scale=2.0,
            generator=generator,
            method=method,
            view_batch_size=view_batch_size,
            **SMALL,
        )

    together = run(slice(0, 3), 16, seeds(1, 2, 3))
    assert relative(run(slice(0, 3), 1, seeds(1, 2, 3)), together) < 1e-6
    assert relative(run(slice(1, 2), 5, seeds(2)), together[1:2]) < 1e-6
    # One generator for all: picture b is still a function of the generator and of b alone.
    shared = run(slice(0, 3), 4, seeds(9)[0])
    assert relative(run(slice(0, 2), 16, seeds(9)[0]), shared[:2]) < 1e-6
    assert relative(shared[0], shared[1]) > 0.1


def test_check_05_the_order_of_views_does_not_matter(make_scheduler, make_denoiser, context, relative, monkeypatch):
    def run():
        return sample(
            make_denoiser(),
            make_scheduler("ddim"),
            latent_shape=(1, 4, 20, 20),
            context=context[:1],
            generator=torch.Generator().manual_seed(0),
            method=MultiDiffusion(stride=4),
            view_batch_size=3,
            **SMALL,
        )

    expected = run()
    forwards = MultiDiffusion.views
    monkeypatch.setattr(MultiDiffusion, "views", lambda self, *sizes: forwards(self, *sizes)[::-1])
    assert relative(run(), expected) < 1e-12


SCRIPT = """
import torch
from diffusers import EulerAncestralDiscreteScheduler
from seecoder.sampling import DemoFusion, sample

def run(scramble):
    def denoiser(latents, timestep, context):
        if scramble:
            torch.manual_seed(int(timestep) + latents.shape[0])
        return 0.5 * latents + 0.1 * torch.tanh(latents.roll(1, 2) - latents.roll(1, 3))

    context = torch.ones(1, 5, 8, dtype=torch.float64)
    scheduler = EulerAncestralDiscreteScheduler(timestep_spacing="leading")
    latents = sample(
        denoiser, scheduler, latent_shape=(1, 4, 16, 16), native_size=(8, 8), num_inference_steps=6, context=context,
        generator=torch.Generator().manual_seed(3), method=DemoFusion(),
    )
    return float(latents.sum()), float(latents.abs().max())
"""


@pytest.mark.heavy
def test_check_22_seeds_hold_across_processes_and_a_scrambled_global_state() -> None:
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT + "print(*(value.hex() for value in run(False)))"]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    scope: dict = {}
    exec(SCRIPT, scope)
    torch.manual_seed(1)
    assert scope["run"](True) == pytest.approx([float.fromhex(word) for word in other], rel=1e-9)


@pytest.mark.parametrize("size", [(8, 24), (24, 8), (13, 17), (4, 32), (5, 7)])
@pytest.mark.parametrize("method", [MultiDiffusion(), DemoFusion()], ids=lambda m: type(m).__name__)
def test_check_26_any_size_runs(size, method, make_scheduler, make_denoiser, context) -> None:
    latents = sample(
        make_denoiser(),
        make_scheduler("ddim"),
        latent_shape=(1, 4, *size),
        context=context[:1],
        generator=torch.Generator().manual_seed(0),
        method=method,
        native_size=(8, 8),
        num_inference_steps=3,
    )
    assert latents.shape == (1, 4, *size)
    assert latents.isfinite().all()


@pytest.mark.parametrize("method", [None, MultiDiffusion(), DemoFusion()], ids=lambda m: type(m).__name__)
def test_the_denoiser_works_in_the_type_of_the_context_and_the_sample_in_float32(
    method, make_scheduler, context
) -> None:
    def half(latents, timestep, context):
        assert latents.dtype == context.dtype == torch.bfloat16
        return latents * 0.5

    latents = sample(
        half,
        make_scheduler("dpm"),
        latent_shape=(1, 4, 16, 16),
        context=context[:1].bfloat16(),
        negative_context=context[:1].bfloat16(),
        guidance_scale=2.0,
        method=method,
        generator=torch.Generator().manual_seed(0),
        **SMALL,
    )
    assert latents.dtype == torch.float32
    assert latents.isfinite().all()


def test_guidance_of_one_evaluates_the_conditional_branch_only(make_scheduler, make_denoiser, context) -> None:
    denoiser = make_denoiser()
    sample(
        denoiser,
        make_scheduler("ddim"),
        latent_shape=(1, 4, 8, 8),
        context=context[:1],
        guidance_scale=1.0,
        **SMALL,
    )
    assert denoiser.largest_batch == 1
    with pytest.raises(ValueError, match="`negative_context`=None, but guidance needs it"):
        sample(
            denoiser,
            make_scheduler("ddim"),
            latent_shape=(1, 4, 8, 8),
            context=context[:1],
            guidance_scale=2.0,
            **SMALL,
        )


def test_progress_and_previews_cover_the_whole_run(make_scheduler, make_denoiser, context) -> None:
    seen, previews = [], []
    sample(
        make_denoiser(),
        make_scheduler("ddim"),
        latent_shape=(1, 4, 16, 16),
        context=context[:1],
        method=DemoFusion(skip_dead_steps=False),
        on_step=seen.append,
        on_stage=previews.append,
        **SMALL,
    )
    assert [progress.step for progress in seen] == list(range(1, 13))
    assert {progress.num_steps for progress in seen} == {12}
    assert [p.stage for p in (seen[0], seen[-1])] == ["phase 1 of 2", "phase 2 of 2"]
    assert [tuple(preview.latents.shape[-2:]) for preview in previews] == [(8, 8), (16, 16)]


def test_the_control_picture_is_cut_to_every_view(make_scheduler, make_denoiser, context) -> None:
    """Each cell of a view must come with the pixels of that very cell, for windows and for lattices."""
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    cells = torch.stack([rows, columns])
    picture = cells.repeat_interleave(8, 1).repeat_interleave(8, 2)[None].double()
    denoiser = make_denoiser()
    checked = []

    def residuals(latents, timestep, context, image):
        assert image.shape[-2:] == (latents.shape[-2] * 8, latents.shape[-1] * 8)
        centres = torch.nn.functional.avg_pool2d(image, 8)
        steps = centres[:, 0, 2:-1, 0] - centres[:, 0, 1:-2, 0]
        checked.append(set(steps.flatten().tolist()))
        return {}

    sample(
        denoiser,
        make_scheduler("ddim"),
        latent_shape=(1, 4, 16, 16),
        context=context[:1],
        generator=torch.Generator().manual_seed(0),
        method=DemoFusion(jitter=False),
        control=Control(picture, residuals),
        **SMALL,
    )
    assert {1.0} in checked
    assert {2.0} in checked


def test_added_conditions_are_stacked_in_the_order_of_the_batch(make_scheduler, context) -> None:
    seen = {}

    def denoiser(latents, timestep, context, added_cond_kwargs):
        seen["ids"], seen["flags"] = added_cond_kwargs["time_ids"], added_cond_kwargs["flag"]
        return latents * 0.1

    def added(view, branch, latent_size):
        flag = torch.tensor([[0.0], [1.0]]) + (10.0 if branch == "positive" else 0.0)
        return {"added_cond_kwargs": {"time_ids": torch.tensor([[view.top, view.left]]), "flag": flag}}

    sample(
        denoiser,
        make_scheduler("ddim"),
        latent_shape=(2, 4, 8, 12),
        native_size=(8, 8),
        num_inference_steps=1,
        context=context[:2],
        negative_context=context[:2],
        guidance_scale=2.0,
        added_conditions=added,
        method=MultiDiffusion(stride=4),
    )
    assert seen["ids"].tolist() == [[0, 0], [0, 4]] * 4
    assert seen["flags"].flatten().tolist() == [0.0, 0.0, 1.0, 1.0, 10.0, 10.0, 11.0, 11.0]


def test_a_generator_per_picture_is_needed_or_one(make_scheduler, seeds) -> None:
    with pytest.raises(ValueError, match="`generator` has 2 entries for 3 pictures"):
        Randomness(seeds(1, 2), 3)


def test_starting_noise_of_the_wrong_shape_is_refused(make_scheduler, make_denoiser, context) -> None:
    with pytest.raises(ValueError, match=r"`latents` has shape \(1, 4, 16, 16\); the first stage of this run needs"):
        sample(
            make_denoiser(),
            make_scheduler("ddim"),
            latent_shape=(1, 4, 16, 16),
            context=context[:1],
            latents=torch.zeros(1, 4, 16, 16),
            method=DemoFusion(),
            **SMALL,
        )


def test_given_pictures_must_fit_the_batch(make_scheduler, make_denoiser, context) -> None:
    with pytest.raises(
        ValueError, match=r"`image_latents` of shape \(2, 4, 8, 8\) must be \(1 or 3, 4, height, width\)"
    ):
        sample(
            make_denoiser(),
            make_scheduler("ddim"),
            latent_shape=(3, 4, 16, 16),
            context=context,
            image_latents=torch.zeros(2, 4, 8, 8),
            method=DemoFusion(),
            **SMALL,
        )
    with pytest.raises(ValueError, match="`image_latents` needs a method that starts from a picture"):
        sample(
            make_denoiser(),
            make_scheduler("ddim"),
            latent_shape=(1, 4, 16, 16),
            context=context[:1],
            image_latents=torch.zeros(1, 4, 8, 8),
            **SMALL,
        )
