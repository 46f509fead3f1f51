from types import SimpleNamespace

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
from seecoder.sampling.methods.perceptual import pyramid_distance
from seecoder.sampling.recipe import max_native_sides
from seecoder.sampling.sizes import exceeds_side

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


@pytest.mark.parametrize("covered", [["all"], ["left", "right"]])
def test_without_a_background_there_is_no_window_to_follow(
    covered, make_scheduler, make_unet, denoiser_of, context
) -> None:
    masks = {name: torch.zeros(4, 4) for name in ("all", "left", "right")}
    masks["all"][:], masks["left"][:, :2], masks["right"][:, 2:] = 1.0, 1.0, 1.0
    regions = [Region(masks[name], context[:1]) for name in covered]
    windows = MultiDiffusion(regions=regions, bootstrap=0.0)
    with pytest.raises(
        ValueError, match="the masks of the regions cover the whole picture, and leave no window of the"
    ):
        run([SYNC, windows], make_scheduler, make_unet(), denoiser_of, context)


@pytest.mark.parametrize("network", [ScaleCrafter(), HiDiffusion()])
@pytest.mark.parametrize("windows", [MultiDiffusion(), SYNC])
def test_networks_are_not_changed_for_native_windows(
    network, windows, make_scheduler, make_unet, denoiser_of, context
) -> None:
    with pytest.raises(
        ValueError, match="changes the network for views above the native size, but the windows are 16x16"
    ):
        run([network, windows], make_scheduler, make_unet(), denoiser_of, context)


@pytest.mark.parametrize("size", [(8, 32), (32, 8)])
def test_one_long_axis_is_above_native_though_the_area_is_not(
    size, make_scheduler, make_unet, denoiser_of, context
) -> None:
    """Re-dilation goes by the axis: the short one stays plain. HiDiffusion shrinks both, and so goes by the area."""
    long_axis = (1.0, 2.0) if size[1] > size[0] else (2.0, 1.0)
    unet = make_unet()

    def made(method):
        return run(method, make_scheduler, unet, denoiser_of, context, size)

    plain = made(None)
    assert not torch.allclose(made(ScaleCrafter()), plain, rtol=1e-3)
    by_hand = {"level.1": long_axis, "level.2": long_axis}
    assert torch.equal(made(ScaleCrafter()), made(ScaleCrafter(dilation=by_hand, dilate_tau=1.0)))
    assert torch.equal(made(HiDiffusion()), plain)
    with pytest.raises(ValueError, match="but the windows are"):
        made([ScaleCrafter(), MultiDiffusion()])


@pytest.mark.parametrize("size", [(16, 16), (14, 18), (13, 20), (11, 23)])
def test_shapes_that_networks_know_at_their_own_area_stay_plain(
    size, make_scheduler, make_unet, denoiser_of, context
) -> None:
    """Up to 1.5 times the native side."""
    unet = make_unet()
    made = run(ScaleCrafter(), make_scheduler, unet, denoiser_of, context, size)
    assert torch.equal(made, run(None, make_scheduler, unet, denoiser_of, context, size))


@pytest.mark.parametrize("size", [(16, 64), (16, 32)])
@pytest.mark.parametrize("maker", [DemoFusion(use_windows=False), RectifiedHR(resize_in="latents", switch_at=(0.5,))])
def test_the_base_of_a_cascade_stays_plain_at_any_aspect(
    size, maker, make_scheduler, make_unet, denoiser_of, context
) -> None:
    """Its first stage has the native area, which counts by area as ever."""
    reached = {}
    unet = make_unet()
    for name, methods in (("alone", [maker]), ("with", [ScaleCrafter(dilate_tau=1.0), maker])):
        steps = reached.setdefault(name, [])
        run(methods, make_scheduler, unet, denoiser_of, context, size, on_step=lambda p, to=steps: to.append(p.latents))
    base = reached["with"][0]
    assert torch.equal(base, reached["alone"][0]) == (base.shape[-2] * base.shape[-1] <= 1.05**2 * 256)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (ScaleCrafter(dilation={"level.99": 2.0}), "The pattern 'level.99' matches no convolution"),
        (ScaleCrafter(damping={"up.7": 2.0}), "The pattern 'up.7' matches no convolution"),
        (ScaleCrafter(disperse=["mid", "l"]), "The pattern 'l' matches no convolution"),
        (HiDiffusion(level=2), "`level`=2 has no downsampler"),
    ],
)
@pytest.mark.parametrize("size", [(16, 16), (32, 32)])
@pytest.mark.parametrize("others", [[], [DemoFusion()]])
def test_layers_are_looked_up_at_every_size(
    method, message, size, others, make_scheduler, make_unet, denoiser_of, context
) -> None:
    with pytest.raises(ValueError, match=message):
        run([method, *others], make_scheduler, make_unet(), denoiser_of, context, size)


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


def test_networks_that_are_told_sizes_know_longer_pictures() -> None:
    """SDXL was trained up to 512x2048: twice the native side."""
    told, others = (SimpleNamespace(config={"addition_embed_type": kind}) for kind in ("text_time", None))
    for size, by_told, by_others in (((64, 256), False, True), ((64, 257), True, True), ((96, 192), False, False)):
        assert exceeds_side(size, (128, 128), max_native_sides(told)) == by_told
        assert exceeds_side(size, (128, 128), max_native_sides(others)) == by_others
