import pytest
import torch

from seecoder.sampling import (
    DemoFusion,
    HiDiffusion,
    MultiDiffusion,
    RectifiedHR,
    Region,
    ScaleCrafter,
    SyncDiffusion,
    sample,
)
from seecoder.sampling.composition import compose
from seecoder.sampling.perceptual import pyramid_distance

SYNC = SyncDiffusion(sync_threshold=1.0, loss=pyramid_distance)


def run(method, make_scheduler, unet, denoiser_of, context, size=(32, 32), rows=None, **options):
    return sample(
        denoiser_of(unet, rows),
        make_scheduler("ddim"),
        latent_shape=(1, 4, *size),
        native_size=(16, 16),
        num_inference_steps=2,
        context=context[:1],
        negative_context=torch.zeros_like(context[:1]),
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(0),
        method=method,
        unet=unet,
        decoder=lambda latents: latents[:, :3],
        encoder=lambda pixels: torch.cat([pixels, pixels[:, :1]], dim=1),
        **options,
    )


@pytest.mark.parametrize(
    "methods",
    [
        [ScaleCrafter(), DemoFusion()],
        [HiDiffusion(), DemoFusion()],
        [MultiDiffusion(stride=8), DemoFusion()],
        [MultiDiffusion(window=32, stride=16), ScaleCrafter()],
        [MultiDiffusion(window=32, stride=16), HiDiffusion()],
        [MultiDiffusion(stride=16), SYNC],
        [SYNC, DemoFusion()],
        [SYNC, MultiDiffusion(window=24, stride=8), ScaleCrafter()],
        [ScaleCrafter(damping={}, damp_tau=1.0), DemoFusion()],
        [ScaleCrafter(), RectifiedHR(switch_at=(0.5,), guidance_boost=(2.0,))],
        [HiDiffusion(), RectifiedHR(switch_at=(0.5,), guidance_boost=(2.0,))],
        [MultiDiffusion(stride=8), RectifiedHR(switch_at=(0.5,), guidance_boost=(2.0,))],
        [ScaleCrafter(), MultiDiffusion(stride=8), DemoFusion()],
    ],
    ids=lambda methods: "+".join(type(method).__name__ for method in methods),
)
def test_what_composes_runs(methods, make_scheduler, make_unet, denoiser_of, context) -> None:
    size = (16, 48) if SYNC in methods and len(methods) == 2 and DemoFusion() not in methods else (32, 48)
    latents = run(methods, make_scheduler, make_unet(), denoiser_of, context, size)
    assert latents.shape == (1, 4, *size)
    assert latents.isfinite().all()


@pytest.mark.parametrize(
    ("methods", "reason"),
    [
        ([ScaleCrafter(), HiDiffusion()], "both change how far the same inner layers reach"),
        ([DemoFusion(), RectifiedHR()], "both decide which resolutions the run goes through"),
        ([MultiDiffusion(), MultiDiffusion()], "both decide through which windows the sample is seen"),
        ([SYNC, RectifiedHR()], "at the native size, where there is one window only"),
        ([MultiDiffusion(closed_loop=True), DemoFusion()], "which has a left and a right end"),
    ],
)
def test_what_does_not_compose_says_why(methods, reason) -> None:
    with pytest.raises(ValueError, match=f"do not compose: .*{reason}"):
        compose(methods)
    with pytest.raises(ValueError, match="do not compose"):
        compose(methods[::-1])


@pytest.mark.parametrize("network", [ScaleCrafter(), HiDiffusion()])
@pytest.mark.parametrize("windows", [MultiDiffusion(), SYNC])
def test_networks_are_not_changed_for_native_windows(
    network, windows, make_scheduler, make_unet, denoiser_of, context
) -> None:
    with pytest.raises(
        ValueError, match="changes the network for views above the native size, but the windows are 16x16"
    ):
        run([network, windows], make_scheduler, make_unet(), denoiser_of, context)


@pytest.mark.parametrize("method", ["demofusion", DemoFusion, 3, [ScaleCrafter(), "demofusion"]])
def test_what_is_no_method_is_refused(method) -> None:
    with pytest.raises(TypeError, match="is not a sampling method"):
        compose(method)


def test_scalecrafter_takes_the_place_of_the_lattices(make_scheduler, make_unet, denoiser_of, context) -> None:
    """The same number of native areas, but one coherent frame where the lattices would be four pictures."""
    rows: list[int] = []
    options = {"jitter": False, "skip_dead_steps": False}
    run([ScaleCrafter(), DemoFusion(**options)], make_scheduler, make_unet(), denoiser_of, context, rows=rows)
    assert rows == [2, 2] + [18, 2] * 2  # base steps; then nine windows and one frame, two branches each
    rows.clear()
    run(DemoFusion(**options), make_scheduler, make_unet(), denoiser_of, context, rows=rows)
    assert rows == [2, 2] + [18, 8] * 2


def test_a_synchronised_panorama_is_the_first_phase_of_demofusion() -> None:
    assert DemoFusion().sizes((32, 96), (16, 16), is_panorama=True) == [(16, 48), (32, 96)]
    assert DemoFusion().sizes((16, 64), (16, 16), is_panorama=True) == [(16, 64)]


def test_regions_hold_in_every_phase_of_demofusion(make_scheduler) -> None:
    """A network that returns its context, on lattices too: each cell must only ever hear of its own region."""

    def telling(latents, timestep, context):
        return context.mean(dim=(1, 2)).view(-1, 1, 1, 1).expand_as(latents)

    mask = torch.zeros(32, 32)
    mask[:, :16] = 1.0
    region = Region(mask, torch.full((1, 5, 8), 3.0, dtype=torch.float64))
    reached = []
    sample(
        telling,
        make_scheduler("ddim"),
        latent_shape=(1, 4, 32, 32),
        native_size=(16, 16),
        num_inference_steps=4,
        context=torch.ones((1, 5, 8), dtype=torch.float64),
        latents=torch.zeros((1, 4, 16, 16), dtype=torch.float64),
        generator=torch.Generator().manual_seed(0),
        method=[MultiDiffusion(stride=8, regions=[region], bootstrap=0.0), DemoFusion(use_skip_residual=False)],
        on_step=lambda progress: reached.append(progress.latents),
    )
    scheduler = make_scheduler("ddim")
    scheduler.set_timesteps(4)
    for phase in (reached[:4], reached[4:]):
        outputs = torch.ones_like(phase[0])
        outputs[..., : phase[0].shape[-1] // 2] = 3.0
        for index in range(1, 4):
            expected = scheduler.step(outputs, scheduler.timesteps[index], phase[index - 1]).prev_sample
            assert index == 3 or torch.allclose(phase[index], expected)  # the last is brought to the anchor's moments
    assert len(reached) == 8
