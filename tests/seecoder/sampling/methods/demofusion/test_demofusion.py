import itertools
import math
from collections import Counter
from dataclasses import replace
from typing import Any, ClassVar

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
from seecoder.sampling.methods.demofusion import dilated_sampling
from seecoder.sampling.methods.demofusion.dilated_sampling import statistics, with_statistics
from seecoder.sampling.methods.demofusion.skip_residual import cosine_decay, influence, skip_weight
from seecoder.sampling.methods.perceptual import pyramid_distance

OPTIONS = {"native_size": (8, 8), "num_inference_steps": 8}
SD_TIMESTEPS = [981 - 20 * index for index in range(50)]


def run(method, make_scheduler, denoiser, context, size=(16, 16), name="ddim", **options):
    return sample(
        denoiser,
        make_scheduler(name),
        latent_shape=(1, 4, *size),
        context=context[:1],
        generator=torch.Generator().manual_seed(0),
        method=method,
        **(OPTIONS | options),
    )


def noised_enlargement(scheduler, base) -> list[torch.Tensor]:
    """The enlarged result of phase 1 at the noise of every step of phase 2, as diffusers itself adds it."""
    generator = torch.Generator().manual_seed(0)
    torch.randn((1, 4, 8, 8), generator=generator, dtype=torch.float64)  # where phase 1 starts
    noise = torch.randn((1, 4, 16, 16), generator=generator, dtype=torch.float64)
    large = torch.nn.functional.interpolate(base, size=(16, 16), mode="bicubic", align_corners=False)
    return [scheduler.add_noise(large, noise, timestep[None]) for timestep in scheduler.timesteps]


def divisors(scheduler) -> list[float]:
    """What the network's input is divided by at every step: sqrt(sigma^2 + 1) for Euler, else nothing."""
    if not scheduler.__class__.__name__.startswith("Euler"):
        return [1.0] * len(scheduler.timesteps)
    return [(float(sigma) ** 2 + 1.0) ** 0.5 for sigma in scheduler.sigmas[:-1]]


def cuts(latents: torch.Tensor) -> torch.Tensor:
    """The nine windows of 8 x 8 over 16 x 16 cells, row by row."""
    return torch.cat([latents[..., top : top + 8, left : left + 8] for top in (0, 4, 8) for left in (0, 4, 8)])


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm"])
def test_check_10_a_skip_weight_of_one_gives_the_noised_enlargement(
    name, make_scheduler, make_denoiser, context, relative
) -> None:
    """Exponent 0 makes c1 = 1: every step starts from the enlargement noised to its timestep, and no other."""
    denoiser, ends = make_denoiser(), []
    method = DemoFusion(cosine_scale_1=0.0, use_dilated_sampling=False, jitter=False, skip_dead_steps=False)
    run(method, make_scheduler, denoiser, context, name=name, on_stage=ends.append)
    scheduler = make_scheduler(name)
    scheduler.set_timesteps(8)
    second_phase = denoiser.calls[8:]
    assert [timestep for _, timestep in second_phase] == scheduler.timesteps.tolist()
    noised = noised_enlargement(scheduler, ends[0].latents)
    for (inputs, _), latents, divisor in zip(second_phase, noised, divisors(scheduler), strict=True):
        assert relative(inputs, cuts(latents) / divisor) < 1e-6


@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_check_10_without_skip_and_dilation_a_phase_is_multidiffusion(
    name, make_scheduler, make_denoiser, context, relative
) -> None:
    """Beside a loop that knows no phases, started from the noised enlargement."""
    ends, denoiser = [], make_denoiser()
    large = {"cosine_scale_1": 1e9, "cosine_scale_2": 1e9}  # c1 = c2 = 0
    method = DemoFusion(**large, jitter=False, skip_dead_steps=False)
    fused = run(method, make_scheduler, make_denoiser(), context, name=name, on_stage=ends.append)
    base = ends[0].latents
    scheduler = make_scheduler(name)
    scheduler.set_timesteps(8)
    latents = noised_enlargement(scheduler, base)[0]
    corners = list(itertools.product((0, 4, 8), repeat=2))
    for timestep, divisor in zip(scheduler.timesteps, divisors(scheduler), strict=True):
        total, count = torch.zeros_like(latents), torch.zeros_like(latents)
        for top, left in corners:
            place = (..., slice(top, top + 8), slice(left, left + 8))
            total[place] += denoiser(latents[place] / divisor, timestep, context[:1])
            count[place] += 1.0
        latents = scheduler.step(total / count, timestep, latents, return_dict=False)[0]
    assert relative(fused, with_statistics(latents, *statistics(base))) < 1e-6
    method = [MultiDiffusion(stride=4), DemoFusion(use_skip_residual=False, use_dilated_sampling=False)]
    assert relative(run(method, make_scheduler, make_denoiser(), context, name=name), fused) < 1e-9


def redrawn(picture, scheduler, denoiser, context) -> torch.Tensor:
    """A picture that is noised and denoised by plain steps, brought back to its own mean and standard deviation."""
    scheduler.set_timesteps(8)
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0), dtype=picture.dtype)
    latents = scheduler.add_noise(picture, noise, scheduler.timesteps[:1])
    for timestep in scheduler.timesteps:
        output = denoiser(latents, timestep, context[:1])
        latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
    return with_statistics(latents, *statistics(picture))


@pytest.mark.parametrize(
    ("size", "stride", "kernel"), [((8, 10), (1, 1), 3), ((16, 16), (2, 2), 1), ((24, 16), (2, 3), 1)]
)
def test_check_10_lattices_without_blur_are_plain(
    size, stride, kernel, make_scheduler, make_denoiser, context, relative, monkeypatch
) -> None:
    """With c2 = 1 and sigma -> 0: a lattice of stride 1 is the frame, and others are to a network of single cells."""
    denoiser = make_denoiser(kernel)
    strides, planned = set(), dilated_sampling.lattices
    monkeypatch.setattr(dilated_sampling, "lattices", lambda *sizes: strides.add(sizes) or planned(*sizes))
    picture = torch.randn((1, 4, *size), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    method = DemoFusion(cosine_scale_1=1e9, cosine_scale_2=0.0, blur_sigma=1e-6, skip_dead_steps=False)
    fused = run(method, make_scheduler, denoiser, context, size=size, image_latents=picture)
    assert strides == {(size, stride)}
    expected = redrawn(picture, make_scheduler("ddim"), denoiser, context)
    assert relative(fused, expected) < 1e-6


def test_check_10_a_given_picture_of_the_native_size_is_redrawn_by_plain_steps(
    make_scheduler, make_denoiser, context, relative
) -> None:
    """At the native size there are no lattices and no windows, only the frame."""
    picture = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    denoiser, method = make_denoiser(), DemoFusion(cosine_scale_1=1e9, skip_dead_steps=False)
    fused = run(method, make_scheduler, denoiser, context, size=(8, 8), image_latents=picture)
    assert len(denoiser.calls) == 8
    expected = redrawn(picture, make_scheduler("ddim"), denoiser, context)
    assert relative(fused, expected) < 1e-6


@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_check_11_dead_steps_do_not_matter(name, make_scheduler, make_denoiser, context) -> None:
    options = {"num_inference_steps": 50, "name": name}
    full = run(DemoFusion(skip_dead_steps=False, jitter=False), make_scheduler, make_denoiser(), context, **options)
    skipping = run(DemoFusion(jitter=False), make_scheduler, make_denoiser(), context, **options)
    assert float((skipping - full).norm() / full.norm()) < 2e-3


@pytest.mark.parametrize(("view_batch_size", "dead", "start"), [(2, False, 0), (16, False, 0), (3, 0.9, 3)])
def test_check_12_every_view_sees_the_sigma_of_its_step(
    view_batch_size, dead, start, make_scheduler, make_denoiser, context, relative
) -> None:
    """The sample before each step is known, before the first one, too; every view must be a cut of it over one sigma.

    The published order has one sigma for the first batch of a step and another for the rest, and none at the first.
    """
    denoiser, ends, reached = make_denoiser(), [], []
    run(
        DemoFusion(skip_dead_steps=dead, jitter=False, blur_sigma=1e-6),
        make_scheduler,
        denoiser,
        context,
        name="euler",
        view_batch_size=view_batch_size,
        on_step=lambda progress: reached.append(progress.latents),
        on_stage=ends.append,
    )
    scheduler = make_scheduler("euler")
    scheduler.set_timesteps(8)
    noised = noised_enlargement(scheduler, ends[0].latents)
    left_behind = dict(enumerate([noised[start], *reached[8:-1]], start=start))
    views_per_step = math.ceil(9 / view_batch_size) + math.ceil(4 / view_batch_size)
    calls = denoiser.calls[8:]
    assert len(calls) == (8 - start) * views_per_step
    for index, latents in left_behind.items():
        time, divisor = float(scheduler.timesteps[index]), divisors(scheduler)[index]
        latents = torch.lerp(latents, noised[index], skip_weight(cosine_decay(time, 1000), 3.0))
        lattices = [latents[..., row::2, column::2] for row in (0, 1) for column in (0, 1)]
        expected = torch.cat([cuts(latents), *lattices]) / divisor
        batches, calls = calls[:views_per_step], calls[views_per_step:]
        assert {timestep for _, timestep in batches} == {time}
        seen = torch.cat([inputs for inputs, _ in batches])
        assert max(relative(view, cut) for view, cut in zip(seen, expected, strict=True)) < 1e-6


SD_WEIGHTS = [skip_weight(cosine_decay(timestep, 1000), 3.0) for timestep in SD_TIMESTEPS]
ONE_JUMP = DemoFusion(num_phases=2, skip_dead_steps=influence(SD_WEIGHTS)[20])  # thirty of fifty steps
DAMPED = ScaleCrafter(dilation={"level.2": 4.0}, dilate_tau=0.7, damping={"mid": 2.0}, damp_tau=0.7, progressive=True)


@pytest.mark.parametrize(
    ("size", "method", "evaluations"),
    [
        (2, None, 200),
        (4, None, 800),
        (2, MultiDiffusion(stride=8), 450),
        (4, MultiDiffusion(stride=8), 2450),
        (2, MultiDiffusion(stride=2), 4050),
        (4, MultiDiffusion(stride=2), 31_250),
        (2, DemoFusion(skip_dead_steps=False), 700),
        (4, DemoFusion(skip_dead_steps=False), 5650),
        (2, DemoFusion(), 557),
        (4, DemoFusion(), 4418),
        (2, ONE_JUMP, 440),
        (4, ONE_JUMP, 2000),
        (2, ScaleCrafter(damp_tau=0.0), 200),
        (4, DAMPED, 1080),  # 1,360 as released, which evaluates a branch that it does not use
        (2, HiDiffusion(), 200),
        (4, HiDiffusion(), 800),
        (2, RectifiedHR(resize_in="latents"), 80),
        (4, RectifiedHR(resize_in="latents"), 140),
    ],
)
def test_check_13_network_evaluations_in_native_windows(
    size, method, evaluations, make_scheduler, make_unet, context
) -> None:
    """In passes over one native window, or the same area, of one branch of two; a third branch counts a half."""
    counted, steps = 0.0, 2 if isinstance(method, MultiDiffusion) else 50  # where all steps cost the same, two will do

    def silent(latents, timestep, context):
        nonlocal counted
        counted += latents.shape[0] * latents.shape[2] * latents.shape[3] / 256
        return torch.zeros_like(latents)

    run(
        method,
        make_scheduler,
        silent,
        context,
        size=(16 * size, 16 * size),
        native_size=(16, 16),
        num_inference_steps=steps,
        guidance_scale=5.0,
        negative_context=context[1:2],
        view_batch_size=64,
        unet=make_unet(),
    )
    assert counted / 2 * 50 / steps == evaluations


class Counted(torch.autograd.Function):
    """No noise anywhere; `rows` counts the latents that go through forwards and backwards."""

    rows: ClassVar[Counter[str]] = Counter()

    @staticmethod
    def forward(ctx, latents):
        Counted.rows["forwards"] += len(latents)
        ctx.save_for_backward(latents)
        return torch.zeros_like(latents)

    @staticmethod
    def backward(ctx, gradient):
        (latents,) = ctx.saved_tensors
        Counted.rows["backwards"] += len(latents)
        return torch.zeros_like(gradient)


def test_check_13_network_evaluations_of_synchronised_windows(make_scheduler, context) -> None:
    """Ten of fifty steps over 21 windows; published 10 * 43 + 40 * 21 = 1,270 forwards and 210 backwards.

    The published loop takes a gradient of the anchor, too, and drops it: here one pass of either kind less a step.
    Checkpoints make the forward pass of every gradient twice.
    """
    Counted.rows.clear()
    run(
        SyncDiffusion(stride=2, loss=pyramid_distance),
        make_scheduler,
        lambda latents, timestep, context: Counted.apply(latents),
        context,
        size=(8, 48),
        num_inference_steps=50,
        decoder=lambda latents: latents[:, :3],
    )
    spared, checkpoints = 10, 200
    assert Counted.rows == {"forwards": 1270 - spared + checkpoints, "backwards": 210 - spared}


def test_a_given_picture_takes_the_place_of_the_first_phase(make_scheduler, make_denoiser, context) -> None:
    picture = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    phases = []
    latents = run(
        DemoFusion(),
        make_scheduler,
        make_denoiser(),
        context,
        size=(24, 24),
        image_latents=picture,
        on_stage=lambda end: phases.append((end.stage, tuple(end.latents.shape[-2:]))),
    )
    assert phases == [("phase 1 of 3", (8, 8)), ("phase 2 of 3", (16, 16)), ("phase 3 of 3", (24, 24))]
    for actual, anchor in zip(statistics(latents), statistics(picture), strict=True):
        assert torch.allclose(actual, anchor, atol=1e-9)


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        ((128, 128), [(64, 64), (128, 128)]),
        ((256, 256), [(64, 64), (128, 128), (192, 192), (256, 256)]),
        ((128, 256), [(48, 88), (88, 176), (128, 256)]),
        ((64, 64), [(64, 64)]),
        ((40, 64), [(40, 64)]),
    ],
)
def test_phases_grow_evenly_from_the_native_area(size, sizes) -> None:
    assert DemoFusion().sizes(size, (64, 64)) == sizes


def test_a_scheduler_that_cannot_restart_is_replaced_by_ddim(make_scheduler, make_denoiser, context, caplog) -> None:
    def published(name: str) -> Any:
        return make_scheduler(name, steps_offset=1)

    replaced = run(DemoFusion(), published, make_denoiser(), context, name="pndm")
    assert [record.message.split(" cannot")[0] for record in caplog.records] == ["PNDMScheduler"]
    assert torch.equal(replaced, run(DemoFusion(), make_scheduler, make_denoiser(), context, name="ddim"))


def test_windows_without_context_predict_as_if_there_were_none(make_scheduler, make_denoiser, context) -> None:
    """Without dilated sampling nothing else asks for the context, so guidance has nothing to add."""
    generator = torch.Generator().manual_seed(3)
    picture = torch.randn((1, 4, 16, 16), generator=generator, dtype=torch.float64)  # in place of all phases but one
    nothing = torch.randn(context[:1].shape, generator=generator, dtype=context.dtype)

    def enlarge(method, told, guidance_scale) -> torch.Tensor:
        options = {"image_latents": picture, "negative_context": nothing, "guidance_scale": guidance_scale}
        return run(method, make_scheduler, make_denoiser(), told, **options)

    seeing = DemoFusion(use_dilated_sampling=False)
    blind = enlarge(replace(seeing, windows_see_context=False), context, 4.0)
    torch.testing.assert_close(blind, enlarge(seeing, nothing, 1.0), atol=1e-10, rtol=0)
    assert (blind - enlarge(seeing, context, 4.0)).abs().max() > 1e-3


def test_windows_without_context_cost_half_under_guidance(make_scheduler, make_denoiser, context) -> None:
    rows = {}
    for sees in (True, False):
        counted = []

        def silent(latents, timestep, context, counted=counted):
            counted.append(len(latents))
            return torch.zeros_like(latents)

        method = DemoFusion(windows_see_context=sees, use_dilated_sampling=False, skip_dead_steps=False)
        run(method, make_scheduler, silent, context, guidance_scale=4.0, negative_context=0 * context[:1])
        rows[sees] = sum(counted)
    first_phase, windows = 8 * 2, 8 * 9  # steps x branches of the frame; steps x windows of the second phase
    assert rows == {True: first_phase + 2 * windows, False: first_phase + windows}


def test_windows_without_context_need_one_that_says_nothing(make_scheduler, make_denoiser, context) -> None:
    with pytest.raises(ValueError, match="as do windows that do not see the context"):
        run(DemoFusion(windows_see_context=False), make_scheduler, make_denoiser(), context)


def test_phases_are_enlarged_through_pixels_where_asked_for(make_scheduler, make_denoiser, context) -> None:
    with pytest.raises(ValueError, match=r"DemoFusion\(\) needs `decoder` and `encoder`"):
        run(DemoFusion(resize_in="pixels"), make_scheduler, make_denoiser(), context)
    sizes = []

    def encode(pixels):
        sizes.append(tuple(pixels.shape[-2:]))
        return pixels / 2

    codec = {"decoder": lambda latents: 2 * latents, "encoder": encode}  # pixels that are latents
    pixels = run(DemoFusion(resize_in="pixels"), make_scheduler, make_denoiser(), context, **codec)
    latents = run(DemoFusion(), make_scheduler, make_denoiser(), context, **codec)
    assert sizes == [(16, 16)]
    assert (pixels - latents).abs().max() > 1e-3  # bilinear in place of bicubic


@pytest.mark.parametrize("name", ["ddim", "heun", "dpm2"])
@pytest.mark.parametrize("steps", [15, 25])
def test_check_11_dead_steps_are_whole_steps_and_dead(name, steps, make_scheduler, make_denoiser, context) -> None:
    """No residual acts on the half steps of Heun and DPM2, so that they discard nothing."""
    scheduler, times = make_scheduler(name), []
    scheduler.set_timesteps(steps)
    run(
        DemoFusion(),
        make_scheduler,
        make_denoiser(),
        context,
        name=name,
        num_inference_steps=steps,
        image_latents=torch.zeros((1, 4, 16, 16), dtype=torch.float64),
        on_step=lambda progress: times.append(progress.timestep),
    )
    start = len(scheduler.timesteps) - len(times)
    assert times == scheduler.timesteps[start:].tolist()
    kept = [1.0 - cosine_decay(time, 1000) ** 3 for time in scheduler.timesteps[:: scheduler.order].tolist()]
    assert start % scheduler.order == 0
    first = start // scheduler.order
    assert math.prod(kept[first + 1 :]) >= 1e-3
    assert first == 0 or math.prod(kept[first:]) < 1e-3
