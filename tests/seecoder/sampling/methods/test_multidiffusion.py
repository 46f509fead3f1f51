import pytest
import torch

from seecoder.sampling import MultiDiffusion, Region, sample
from seecoder.sampling.methods.multidiffusion import region_weights
from seecoder.sampling.views import windows

OPTIONS = {"native_size": (8, 8), "num_inference_steps": 6}


@pytest.mark.parametrize(
    "method",
    [
        MultiDiffusion(stride=3),
        MultiDiffusion(stride=8),
        MultiDiffusion(stride=4, jitter=2),
        MultiDiffusion(stride=5, blend="feather"),
        MultiDiffusion(window=(6, 8), stride=(2, 4)),
        MultiDiffusion(stride=4, closed_loop=True),
    ],
    ids=repr,
)
def test_check_02_a_network_without_context_shows_no_windows(method, make_scheduler, make_denoiser, context, relative):
    def run(method):
        return sample(
            make_denoiser(kernel=1),
            make_scheduler("ddim"),
            latent_shape=(1, 4, 20, 24),
            context=context[:1],
            generator=torch.Generator().manual_seed(0),
            method=method,
            **OPTIONS,
        )

    assert relative(run(method), run(None)) < 1e-9


def step_then_fuse(scheduler, denoiser, noise, context, views, steps, **options):
    """The published order: every window makes its own step, the stepped windows are averaged."""
    scheduler.set_timesteps(steps)
    latents = noise * scheduler.init_noise_sigma
    with torch.no_grad():
        for index, timestep in enumerate(scheduler.timesteps):
            total, count = torch.zeros_like(latents), torch.zeros_like(latents)
            for view in views:
                if hasattr(scheduler, "set_begin_index"):
                    scheduler.set_begin_index(index)
                    scheduler._step_index = None
                part = view.gather(latents)
                output = denoiser(scheduler.scale_model_input(part, timestep), timestep, context)
                view.scatter_add(total, scheduler.step(output, timestep, part, return_dict=False, **options)[0])
                view.scatter_add(count, torch.ones_like(part))
            latents = total / count
    return latents


@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_check_04_fusing_before_the_step_equals_fusing_after_it(
    name, make_scheduler, make_denoiser, context, relative
) -> None:
    noise = torch.randn((1, 4, 8, 20), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    views = windows((8, 20), (8, 8), (4, 4))
    expected = step_then_fuse(make_scheduler(name), make_denoiser(), noise, context[:1], views, 6)
    actual = sample(
        make_denoiser(),
        make_scheduler(name),
        latent_shape=(1, 4, 8, 20),
        context=context[:1],
        latents=noise,
        method=MultiDiffusion(stride=4),
        **OPTIONS,
    )
    assert relative(actual, expected) < 1e-6


def test_check_04_averaging_stepped_windows_would_divide_fresh_noise_by_the_overlap(make_scheduler, context) -> None:
    """One stochastic step of a zero network leaves only the step's own noise to compare."""
    size, views = (8, 64), windows((8, 64), (8, 8), (2, 2))

    def silent(latents, timestep, context):
        return torch.zeros_like(latents)

    def spread(run):
        return float(torch.cat([run(seed) for seed in range(4)])[..., 16:-16].square().mean())  # its mean is 0

    zeros = torch.zeros((1, 4, *size), dtype=torch.float64)

    def ours(seed):
        return sample(
            silent,
            make_scheduler("ddim"),
            latent_shape=(1, 4, *size),
            native_size=(8, 8),
            num_inference_steps=2,
            context=context[:1],
            latents=zeros,
            eta=1.0,
            generator=torch.Generator().manual_seed(seed),
            method=MultiDiffusion(stride=2),
        )

    def theirs(seed):
        generator = torch.Generator().manual_seed(seed)
        scheduler = make_scheduler("ddim")
        return step_then_fuse(scheduler, silent, zeros, context[:1], views, 2, eta=1.0, generator=generator)

    assert spread(ours) / spread(theirs) == pytest.approx(4.0, rel=0.15)  # every cell lies in four windows


@pytest.mark.parametrize("shift", [4, 12])
def test_check_06_rolling_the_noise_rolls_a_closed_loop(
    shift, make_scheduler, make_denoiser, context, relative
) -> None:
    noise = torch.randn((1, 4, 8, 24), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def run(latents):
        return sample(
            make_denoiser(),
            make_scheduler("ddim"),
            latent_shape=(1, 4, 8, 24),
            context=context[:1],
            latents=latents,
            method=MultiDiffusion(stride=4, closed_loop=True),
            **OPTIONS,
        )

    assert relative(run(noise.roll(shift, -1)), run(noise).roll(shift, -1)) < 1e-12


def test_every_region_follows_its_own_context(make_scheduler, context) -> None:
    """A network that returns its context shows which context each cell was denoised with."""

    def telling(latents, timestep, context):
        return context.mean(dim=(1, 2)).view(-1, 1, 1, 1).expand_as(latents)

    mask = torch.zeros(16, 16)
    mask[:, :6] = 1.0
    levels = [torch.full((1, 5, 8), value, dtype=torch.float64) for value in (1.0, 3.0)]
    region = Region(mask, levels[1])
    zeros = torch.zeros((1, 4, 16, 16), dtype=torch.float64)

    def run(regions, context):
        return sample(
            telling,
            make_scheduler("ddim"),
            latent_shape=(1, 4, 16, 16),
            context=context,
            latents=zeros,
            method=MultiDiffusion(regions=regions, bootstrap=0.0),
            **OPTIONS,
        )

    both = run([region], levels[0])
    assert torch.allclose(both[..., 6:], run([], levels[0])[..., 6:])
    assert torch.allclose(both[..., :6], run([], levels[1])[..., :6])


def test_bootstrapped_regions_are_denoised_before_a_constant_background(make_scheduler, context) -> None:
    seen = []

    def looking(latents, timestep, context):
        if float(context.mean()) == 3.0:
            seen.append(latents.clone())
        return torch.zeros_like(latents)

    mask = torch.zeros(16, 16)
    mask[:8] = 1.0
    noise = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    region = Region(mask, torch.full((1, 5, 8), 3.0, dtype=torch.float64))

    def run(seed, encoder):
        return sample(
            looking,
            make_scheduler("ddim"),
            latent_shape=(1, 4, 16, 16),
            native_size=(16, 16),
            num_inference_steps=5,
            context=context[:1],
            latents=noise,
            generator=torch.Generator().manual_seed(seed),
            method=MultiDiffusion(regions=[region]),
            encoder=encoder,
        )

    def encoder(pixels):
        return pixels[:, :1, ::8, ::8].expand(-1, 4, -1, -1)

    first, second = run(0, encoder), run(1, encoder)
    assert torch.equal(first, second), "outside of its mask a region's background must not reach the result"
    assert torch.equal(seen[0][..., :8, :], noise[..., :8, :])
    assert not torch.allclose(seen[0][..., 8:, :], noise[..., 8:, :])
    assert torch.equal(seen[2], seen[7]), "after the bootstrap (two of five steps) the sample itself is seen"
    with pytest.raises(ValueError, match="`bootstrap` above 0 needs an `encoder`"):
        run(0, None)


def test_region_maps_add_up_to_one_where_masks_overlap() -> None:
    masks = [torch.ones(4, 8), torch.cat([torch.ones(4, 4), torch.zeros(4, 4)], dim=1)]
    maps = region_weights(masks, (8, 16), torch.device("cpu"), torch.float64)
    assert torch.allclose(torch.stack(maps).sum(dim=0), torch.ones(1, 8, 16, dtype=torch.float64))
    assert maps[1][0, 0, 0] == 0.5


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (MultiDiffusion(stride=9), "`stride`=9 must lie between 1 and the window of 8 cells"),
        (MultiDiffusion(stride=4, jitter=3), "`jitter`=3 would leave cells that no window sees"),
        (MultiDiffusion(stride=5, closed_loop=True), "cannot be tiled evenly"),
    ],
)
def test_windows_that_do_not_fit_are_refused(method, message) -> None:
    with pytest.raises(ValueError, match=message):
        method.views((8, 8), (16, 24))


@pytest.mark.parametrize(("width", "count"), [(256, 16), (257, 17), (250, 25), (251, 16), (100, 10)])
def test_a_loop_of_any_width_has_about_as_many_windows_as_its_neighbours(width: int, count: int) -> None:
    views = MultiDiffusion(closed_loop=True).views((64, 64), (64, width))
    assert len(views) == count
    covered = torch.zeros(1, 64, width)
    for view in views:
        view.scatter_add(covered, torch.ones(1, *view.size))
    assert float(covered.min()) >= 64 // 16


@pytest.mark.parametrize(("size", "count"), [((64, 64), 1), ((65, 64), 1), ((67, 67), 1), ((68, 67), 2), ((68, 68), 4)])
def test_a_size_that_barely_exceeds_the_native_one_is_one_window(size: tuple[int, int], count: int) -> None:
    views = MultiDiffusion().views((64, 64), size)
    assert len(views) == count
    assert len(MultiDiffusion(window=64).views((64, 64), (65, 65))) == 4
