"""What views are told besides their cells."""

import pytest
import torch
from torch.nn import functional

from seecoder.sampling import Control, DemoFusion, MultiDiffusion, sample

CELL = 8  # pixels


def residuals(latents, timestep, context, image):
    """A ControlNet that sees one cell, the sample in it and the context."""
    told = context.mean(dim=(1, 2)).view(-1, 1, 1, 1)
    return {"mid_block_additional_residual": torch.tanh(functional.avg_pool2d(image, CELL) + 0.3 * latents + told)}


def pointwise(latents, timestep, context, mid_block_additional_residual):
    """A network without context, which shows no windows unless its residuals do."""
    told = context.mean(dim=(1, 2)).view(-1, 1, 1, 1)
    return 0.5 * torch.tanh(latents + told) + mid_block_additional_residual


@pytest.fixture
def controlled(make_scheduler, context):
    """Latents of two pictures, or of some of them, each with noise, context and control picture of its own."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((2, 4, 12, 24), generator=generator, dtype=torch.float64)
    pictures = torch.rand((2, 4, 12 * CELL, 24 * CELL), generator=generator, dtype=torch.float64) * 2 - 1

    def run(method, rows=slice(0, 2), **options):
        return sample(
            pointwise,
            make_scheduler("ddim"),
            latent_shape=(len(noise[rows]), 4, 12, 24),
            native_size=(8, 8),
            num_inference_steps=3,
            context=context[:2][rows],
            negative_context=torch.zeros_like(context[:1]),
            guidance_scale=2.0,
            latents=noise[rows],
            method=method,
            control=Control(pictures[rows], residuals, pixels_per_cell=CELL),
            **options,
        )

    return run


@pytest.mark.parametrize(
    "method",
    [
        MultiDiffusion(stride=4),
        MultiDiffusion(window=(6, 8), stride=(5, 3)),
        MultiDiffusion(stride=4, jitter=2, blend="feather"),
        MultiDiffusion(stride=4, closed_loop=True),
        MultiDiffusion(stride=2, closed_loop=True, jitter=3),
    ],
    ids=repr,
)
@pytest.mark.parametrize("view_batch_size", [16, 3])
def test_every_window_has_the_residuals_of_its_own_cut(method, view_batch_size, controlled, relative) -> None:
    assert relative(controlled(method, view_batch_size=view_batch_size), controlled(None)) < 1e-9


def test_every_picture_has_the_residuals_of_its_own_control_picture(controlled, relative) -> None:
    together, alone = controlled(MultiDiffusion(stride=4)), controlled(None, slice(1, 2))
    assert relative(together[1:], alone) < 1e-9
    assert relative(together[:1], alone) > 0.1


def test_a_control_picture_is_resized_once_a_stage(make_scheduler, context, monkeypatch) -> None:
    sizes, resize = [], functional.interpolate

    def counted(values, **options):
        if values.shape[1] == 3:
            sizes.append(tuple(options["size"]))
        return resize(values, **options)

    monkeypatch.setattr(functional, "interpolate", counted)
    sample(
        lambda latents, timestep, context: latents,
        make_scheduler("ddim"),
        latent_shape=(1, 4, 16, 16),
        native_size=(8, 8),
        num_inference_steps=3,
        context=context[:1],
        negative_context=torch.zeros_like(context[:1]),
        guidance_scale=2.0,
        method=DemoFusion(),
        control=Control(torch.rand((1, 3, 50, 50)), lambda *_: {}, pixels_per_cell=CELL),
    )
    assert sizes == [(64, 64), (128, 128)]


def test_one_control_picture_serves_the_whole_batch(make_scheduler, context) -> None:
    seen = []

    def watching(latents, timestep, context, image):
        seen.append(image)
        return {}

    sample(
        lambda latents, timestep, context: latents,
        make_scheduler("ddim"),
        latent_shape=(2, 4, 8, 12),
        native_size=(8, 8),
        num_inference_steps=1,
        context=context[:2],
        method=MultiDiffusion(stride=4),
        control=Control(torch.rand((1, 3, 8, 12)), watching, pixels_per_cell=1),
    )
    assert torch.equal(seen[0][:2], seen[0][2:])
    assert not torch.equal(seen[0][0], seen[0][1])


@pytest.mark.parametrize("method", [None, MultiDiffusion(stride=4, jitter=2), DemoFusion()])
def test_every_view_has_its_own_cut_of_the_extra_channels(method, make_scheduler, context) -> None:
    """A network that gives back what it is told paints exactly that, if windows and lattices are told their own."""
    whole = torch.randn((2, 4, 12, 24), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = sample(
        lambda latents, timestep, context: latents[:, 4:],
        make_scheduler("euler", prediction_type="sample"),
        latent_shape=(2, 4, 12, 24),
        native_size=(12, 24) if method is None else (8, 8),
        num_inference_steps=3,
        context=context[:2],
        negative_context=torch.zeros_like(context[:1]),
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(1),
        extra_channels=lambda size: whole if size == (12, 24) else functional.adaptive_avg_pool2d(whole, size),
        method=method,
    )
    if isinstance(method, DemoFusion):  # its last phase has the mean and the deviation of the first
        found, whole = (
            (values - values.mean(dim=(2, 3), keepdim=True)) / values.std(dim=(2, 3), keepdim=True)
            for values in (found, whole)
        )
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=0)
