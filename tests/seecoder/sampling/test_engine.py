import gc
import inspect
import subprocess
import sys

import pytest
import torch

from seecoder.sampling import (
    Control,
    DemoFusion,
    HiDiffusion,
    MultiDiffusion,
    RectifiedHR,
    ScaleCrafter,
    SyncDiffusion,
    sample,
)
from seecoder.sampling.methods.perceptual import pyramid_distance
from seecoder.sampling.randomness import Randomness

SYNC = SyncDiffusion(stride=4, sync_threshold=1.0, loss=pyramid_distance)
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
    from seecoder.sampling.views import windows

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


@pytest.fixture
def live_bytes():
    """Counts the bytes of all tensors born since the test began, shared storage once."""

    def count() -> int:
        storages = {}
        for entry in gc.get_objects():
            if type(entry) is torch.Tensor:
                storage = entry.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        return sum(storages.values())

    gc.collect()
    gc.freeze()  # what is here already is neither searched nor counted
    yield count
    gc.unfreeze()


@pytest.mark.heavy
@pytest.mark.parametrize(
    "windowed",
    [
        lambda stride: MultiDiffusion(stride=stride),
        lambda stride: MultiDiffusion(stride=stride, blend="feather", jitter=(8 - stride) // 2),
        lambda stride: DemoFusion(stride=stride),
        lambda stride: [MultiDiffusion(stride=stride), RectifiedHR(switch_at=(0.5,), resize_in="latents")],
    ],
    ids=["MultiDiffusion", "jittered", "DemoFusion", "RectifiedHR"],
)
def test_check_26_memory_follows_the_micro_batch_not_the_views(windowed, make_scheduler, context, live_bytes) -> None:
    """Counted at the network's door: many times as many windows hold no more than a few."""
    views, peaks = [], []

    def watching(latents, timestep, context):
        views[-1] += len(latents)
        peaks[-1] = max(peaks[-1], live_bytes())
        assert len(latents) <= 6  # three views, two branches
        return torch.zeros_like(latents)

    for stride in (8, 4, 2, 1):
        views.append(0)
        peaks.append(0)
        sample(
            watching,
            make_scheduler("ddim"),
            latent_shape=(1, 4, 32, 32),
            native_size=(8, 8),
            num_inference_steps=2,
            context=context[:1],
            negative_context=context[1:2],
            guidance_scale=2.0,
            generator=torch.Generator().manual_seed(0),
            method=windowed(stride),
            view_batch_size=3,
        )
    assert views[-1] > 15 * views[0]
    assert max(peaks) < 1.1 * peaks[0]


def test_check_26_large_frames_count_by_their_area(make_scheduler, make_denoiser, context) -> None:
    denoiser = make_denoiser()
    sample(
        denoiser,
        make_scheduler("ddim"),
        latent_shape=(3, 4, 16, 16),
        native_size=(8, 8),
        num_inference_steps=1,
        context=context,
        view_batch_size=4,
    )
    assert denoiser.largest_batch == 1


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
