import functools

import pytest
import torch
from diffusers import DDIMScheduler

from seecoder.sampling import DemoFusion, MultiDiffusion, RectifiedHR, Region, SyncDiffusion, sample
from seecoder.sampling.methods.perceptual import pyramid_distance


def mask_of(top: int, left: int, value: float) -> torch.Tensor:
    """A rectangle of 9 x 9 in 16 x 16 cells, which fits no latents of these tests evenly."""
    mask = torch.zeros(16, 16)
    mask[top : top + 9, left : left + 9] = value
    return mask


TOLD = torch.full((1, 5, 8), 3.0, dtype=torch.float64)
REGIONS = (Region(mask_of(0, 0, 1.0), TOLD), Region(mask_of(4, 5, 1.0), TOLD), Region(mask_of(6, 2, 0.3), TOLD))


@pytest.fixture
def fields(monkeypatch) -> list[torch.Tensor]:
    """What the scheduler is given in every step."""
    given, stepped = [], DDIMScheduler.step

    @functools.wraps(stepped)
    def watched(self, output, *arguments, **options):
        given.append(output)
        return stepped(self, output, *arguments, **options)

    monkeypatch.setattr(DDIMScheduler, "step", watched)
    return given


@pytest.mark.parametrize("size", [(8, 12), (13, 20), (24, 40)])
@pytest.mark.parametrize(
    "method",
    [
        MultiDiffusion(stride=3),
        MultiDiffusion(stride=5, jitter=1, blend="feather"),
        MultiDiffusion(stride=4, closed_loop=True, blend="feather"),
        MultiDiffusion(stride=4, jitter=2, blend="feather", regions=REGIONS),
        MultiDiffusion(stride=4, closed_loop=True, regions=REGIONS[:1]),
        DemoFusion(skip_dead_steps=False),
        DemoFusion(stride=3, use_skip_residual=False),
        [MultiDiffusion(stride=4, jitter=2, blend="feather", regions=REGIONS), DemoFusion(skip_dead_steps=False)],
        [MultiDiffusion(stride=3, regions=REGIONS[1:]), RectifiedHR(switch_at=(0.5,), resize_in="latents")],
        SyncDiffusion(stride=4, sync_threshold=1.0, loss=pyramid_distance),
    ],
    ids=lambda value: "+".join(type(entry).__name__ for entry in (value if isinstance(value, list) else [value])),
)
def test_check_03_a_network_of_ones_makes_a_field_of_ones(method, size, make_scheduler, context, fields) -> None:
    """A fused field is then the sum of all weights: of views, regions and paths."""
    sample(
        lambda latents, timestep, context: torch.ones_like(latents),
        make_scheduler("ddim"),
        latent_shape=(2, 4, *size),
        native_size=(8, 8),
        num_inference_steps=4,
        context=context[:2],
        generator=torch.Generator().manual_seed(size[0]),
        method=method,
        decoder=lambda latents: latents[:, :3],
        encoder=lambda pixels: torch.cat([pixels, pixels[:, :1]], dim=1),
    )
    assert tuple(fields[-1].shape[-2:]) == size
    assert len(fields) >= 4
    for field in fields:
        torch.testing.assert_close(field, torch.ones_like(field), atol=1e-14, rtol=0)


@pytest.mark.parametrize(("blend", "shared"), [("feather", [0.8, 1.6, 2.4, 3.2]), ("uniform", [2.0, 2.0, 2.0, 2.0])])
def test_windows_count_by_their_blend_where_they_overlap(blend, shared, make_scheduler, context, fields) -> None:
    """Two windows that say where they begin, at 0 and at 4: over columns 4 to 7 the second's weight rises."""

    def telling(latents, timestep, context, left):
        return left.view(-1, 1, 1, 1).expand_as(latents)

    sample(
        telling,
        make_scheduler("ddim"),
        latent_shape=(1, 4, 8, 12),
        native_size=(8, 8),
        num_inference_steps=1,
        context=context[:1],
        method=MultiDiffusion(stride=4, blend=blend),
        added_conditions=lambda view, branch, size: {"left": torch.tensor([float(view.left)])},
    )
    expected = torch.tensor([0.0] * 4 + shared + [4.0] * 4, dtype=torch.float64)
    torch.testing.assert_close(fields[0], expected.expand(1, 4, 8, 12), atol=1e-14, rtol=0)
