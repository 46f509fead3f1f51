import itertools
import math
from dataclasses import replace

import pytest
import torch

from seecoder.sampling import DemoFusion, MultiDiffusion, sample
from seecoder.sampling.demofusion import (
    blur_deviation,
    cosine_decay,
    dilated_weight,
    first_live_step,
    influence,
    skip_weight,
)
from seecoder.sampling.filters import statistics, with_statistics

OPTIONS = {"native_size": (8, 8), "num_inference_steps": 8}
SD_TIMESTEPS = [981 - 20 * index for index in range(50)]


def test_check_08_cosine_decay_falls_from_one_to_zero() -> None:
    decays = [cosine_decay(timestep, 1000) for timestep in range(1001)]
    assert decays[1000] == 1.0
    assert decays[0] == pytest.approx(0.0, abs=1e-12)
    assert all(earlier < later for earlier, later in itertools.pairwise(decays))


@pytest.mark.parametrize(
    ("timestep", "table"), [(981, (0.9973, 0.9991, 0.9991)), (481, (0.1039, 0.4702, 0.4755)), (1, (0.0, 0.0, 0.0100))]
)
def test_check_08_the_three_weights(timestep, table) -> None:
    kappa = cosine_decay(timestep, 1000)
    weights = (skip_weight(kappa, 3.0), dilated_weight(kappa, 1.0), blur_deviation(kappa, 1.0, 1.0))
    assert weights == pytest.approx(table, abs=5e-5)


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


def test_check_10_a_skip_weight_of_one_gives_the_noised_enlargement(make_scheduler, make_denoiser, context) -> None:
    """Exponent 0 makes c1 = 1: the sample before every step is the noised enlargement, whatever the network said."""
    seen = {}
    for gain in (0.0, 1.0):
        inner = make_denoiser()
        inputs = []

        def denoiser(latents, timestep, context, inner=inner, inputs=inputs, gain=gain):
            inputs.append(latents.clone())
            return inner(latents, timestep, context) * (gain if len(inputs) > 8 else 1.0)

        method = DemoFusion(cosine_scale_1=0.0, use_dilated_sampling=False, skip_dead_steps=False)
        run(method, make_scheduler, denoiser, context)
        seen[gain] = inputs
    assert len(seen[0.0]) == 16
    assert all(torch.equal(a, b) for a, b in zip(seen[0.0], seen[1.0], strict=True))


def test_check_10_without_skip_and_dilation_a_phase_is_multidiffusion(
    make_scheduler, make_denoiser, context, relative
) -> None:
    large = {"cosine_scale_1": 1e9, "cosine_scale_2": 1e9}  # c1 = c2 = 0
    enlarged = []
    fused = run(
        DemoFusion(**large, jitter=False, skip_dead_steps=False),
        make_scheduler,
        make_denoiser(),
        context,
        on_step=lambda progress: enlarged.append(progress.latents),
    )
    # The same phase by MultiDiffusion, from the noised enlargement, checked through its first step's sample.
    plain = run(
        DemoFusion(use_skip_residual=False, use_dilated_sampling=False, jitter=False),
        make_scheduler,
        make_denoiser(),
        context,
    )
    windows = run(
        [MultiDiffusion(stride=4), DemoFusion(use_skip_residual=False, use_dilated_sampling=False)],
        make_scheduler,
        make_denoiser(),
        context,
    )
    assert relative(fused, plain) < 1e-9
    assert relative(fused, windows) < 1e-9


def test_check_10_only_a_lattice_of_stride_one_without_blur_is_plain(
    make_scheduler, make_denoiser, context, relative
) -> None:
    """At the native size with c2 = 1 the lattice is the frame: a given picture is then redrawn by plain steps."""
    picture = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    method = DemoFusion(cosine_scale_1=1e9, cosine_scale_2=0.0, blur_sigma=1e-6, skip_dead_steps=False)
    fused = run(method, make_scheduler, make_denoiser(), context, size=(8, 8), picture_latents=picture)
    scheduler = make_scheduler("ddim")
    scheduler.set_timesteps(8)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    latents = scheduler.add_noise(picture, noise, scheduler.timesteps[:1])
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            output = make_denoiser()(latents, timestep, context[:1])
            latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
    assert relative(fused, with_statistics(latents, *statistics(picture))) < 1e-6


def test_check_11_the_influence_table_of_fifty_steps() -> None:
    weights = [skip_weight(cosine_decay(timestep, 1000), 3.0) for timestep in SD_TIMESTEPS]
    limits = (1e-6, 1e-4, 1e-3, 1e-2, 5e-2)
    assert [first_live_step(weights, limit) for limit in limits] == [6, 9, 11, 13, 16]
    assert influence(weights)[-1] == 1.0


@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_check_11_dead_steps_do_not_matter(name, make_scheduler, make_denoiser, context) -> None:
    options = {"num_inference_steps": 50, "name": name}
    full = run(DemoFusion(skip_dead_steps=False, jitter=False), make_scheduler, make_denoiser(), context, **options)
    skipping = run(DemoFusion(jitter=False), make_scheduler, make_denoiser(), context, **options)
    assert float((skipping - full).norm() / full.norm()) < 2e-3


def test_check_12_every_view_sees_the_sigma_of_its_step(make_scheduler, make_denoiser, context) -> None:
    """The sample before each step is known; every view must be a cut of it, scaled by one sigma."""
    denoiser, reached = make_denoiser(), []
    run(
        DemoFusion(use_skip_residual=False, skip_dead_steps=False, jitter=False, blur_sigma=1e-6),
        make_scheduler,
        denoiser,
        context,
        name="euler",
        view_batch_size=2,
        on_step=lambda progress: reached.append((progress.timestep, progress.latents)),
    )
    scheduler = make_scheduler("euler")
    scheduler.set_timesteps(8)
    sigmas = {float(t): float(s) for t, s in zip(scheduler.timesteps, scheduler.sigmas, strict=False)}
    second_phase = [latents for _, latents in reached[8:]]
    views_per_step = math.ceil(9 / 2) + math.ceil(4 / 2)
    calls = denoiser.calls[8:]
    assert len(calls) == 8 * views_per_step
    for place, latents in enumerate(second_phase[:-1], start=1):
        batch = calls[place * views_per_step : (place + 1) * views_per_step]
        timestep = batch[0][1]
        scaled = latents / (sigmas[timestep] ** 2 + 1) ** 0.5
        lattices = torch.cat([inputs for inputs, _ in batch[-2:]])
        expected = torch.cat([scaled[..., a::2, b::2] for a in (0, 1) for b in (0, 1)])
        assert torch.allclose(lattices, expected, rtol=1e-5, atol=1e-6)
        corner = batch[0][0][:1]
        assert torch.allclose(corner, scaled[..., :8, :8], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("size", "method", "evaluations"),
    [
        (2, MultiDiffusion(stride=8), 450),
        (2, MultiDiffusion(stride=2), 4050),
        (2, DemoFusion(skip_dead_steps=False), 700),
        (2, DemoFusion(), 557),
        (4, MultiDiffusion(stride=8), 2450),
        (4, DemoFusion(skip_dead_steps=False), 5650),
        (4, DemoFusion(), 4418),
        (4, None, 800),
    ],
)
def test_check_13_network_evaluations_in_native_windows(size, method, evaluations, make_scheduler, context) -> None:
    counted = 0.0

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
        num_inference_steps=50,
        view_batch_size=64,
    )
    assert counted == evaluations


def test_a_given_picture_takes_the_place_of_the_first_phase(make_scheduler, make_denoiser, context) -> None:
    picture = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    phases = []
    latents = run(
        DemoFusion(),
        make_scheduler,
        make_denoiser(),
        context,
        size=(24, 24),
        picture_latents=picture,
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


def test_a_scheduler_that_cannot_restart_is_refused_before_the_first_step(
    make_scheduler, make_denoiser, context
) -> None:
    denoiser = make_denoiser()
    with pytest.raises(ValueError, match="PNDMScheduler cannot start inside its trajectory"):
        run(DemoFusion(), make_scheduler, denoiser, context, name="pndm")
    assert not denoiser.calls


def test_windows_without_context_predict_as_if_there_were_none(make_scheduler, make_denoiser, context) -> None:
    """Without dilated sampling nothing else asks for the context, so guidance has nothing to add."""
    generator = torch.Generator().manual_seed(3)
    picture = torch.randn((1, 4, 16, 16), generator=generator, dtype=torch.float64)  # in place of all phases but one
    nothing = torch.randn(context[:1].shape, generator=generator, dtype=context.dtype)

    def enlarge(method, told, guidance_scale) -> torch.Tensor:
        options = {"picture_latents": picture, "negative_context": nothing, "guidance_scale": guidance_scale}
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
    with pytest.raises(ValueError, match="`resize_in`='paper' is unknown"):
        run(DemoFusion(resize_in="paper"), make_scheduler, make_denoiser(), context)
    sizes = []

    def encode(pixels):
        sizes.append(tuple(pixels.shape[-2:]))
        return pixels / 2

    codec = {"decoder": lambda latents: 2 * latents, "encoder": encode}  # pixels that are latents
    pixels = run(DemoFusion(resize_in="pixels"), make_scheduler, make_denoiser(), context, **codec)
    latents = run(DemoFusion(), make_scheduler, make_denoiser(), context, **codec)
    assert sizes == [(16, 16)]
    assert (pixels - latents).abs().max() > 1e-3  # bilinear in place of bicubic
