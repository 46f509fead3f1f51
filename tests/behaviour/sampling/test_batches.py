"""A picture is the same alone and in a batch, in whatever micro-batches: every method, with fresh noise in steps."""

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

DAMPED = ScaleCrafter(damping={"mid": 1.5}, damp_tau=0.7, disperse=["level.2"])
SWITCHED = RectifiedHR(switch_at=(0.5,), guidance_boost=(2.0,), resize_in="latents")
SYNC = SyncDiffusion(stride=8, sync_threshold=0.4, loss=pyramid_distance)
LEFT = torch.zeros(16, 12)
LEFT[:, :6] = 1.0
REGIONS = [Region(LEFT, torch.randn((3, 5, 8), generator=torch.Generator().manual_seed(6), dtype=torch.float64))]
METHODS = {
    "ScaleCrafter": lambda rows: [DAMPED],
    "HiDiffusion": lambda rows: [HiDiffusion()],
    "RectifiedHR": lambda rows: [SWITCHED],
    "regions": lambda rows: [MultiDiffusion(stride=4, jitter=2, regions=told(rows))],
    "network and stages": lambda rows: [DAMPED, DemoFusion()],
    "regions and stages": lambda rows: [MultiDiffusion(stride=8, regions=told(rows)), SWITCHED],
    "editor and stages": lambda rows: [SYNC, DemoFusion()],
}
# Other micro-batches may add in another order, 2^-53 = 1.1e-16 for each of the some thousand sums that a value goes
# through, if all erred alike. The noise or the context of another picture moves the result by more than 0.1.
TOLERANCE = 1e-12


def told(rows: slice) -> list[Region]:
    """Every picture of the batch has its own context in the region."""
    return [Region(region.mask, region.context[rows]) for region in REGIONS]


@pytest.mark.parametrize(("name", "eta"), [("ddim", 0.7), ("euler_ancestral", 0.0)])
@pytest.mark.parametrize("methods", METHODS.values(), ids=METHODS.keys())
def test_check_05_a_picture_does_not_depend_on_its_batch(
    methods, name, eta, make_scheduler, make_unet, denoiser_of, context, seeds, relative
) -> None:
    unet = make_unet()

    def run(rows: slice, view_batch_size: int) -> torch.Tensor:
        return sample(
            denoiser_of(unet),
            make_scheduler(name),
            latent_shape=(len(context[rows]), 4, 16, 12),
            native_size=(8, 8),
            num_inference_steps=2,
            context=context[rows],
            negative_context=torch.zeros_like(context[:1]),
            guidance_scale=2.0,
            eta=eta,
            generator=seeds(1, 2, 3)[rows],
            method=methods(rows),
            decoder=lambda latents: latents[:, :3],
            encoder=lambda pixels: torch.cat([pixels, pixels[:, :1]], dim=1)[..., ::8, ::8],
            unet=unet,
            view_batch_size=view_batch_size,
        )

    together = run(slice(0, 3), 16)
    assert relative(run(slice(0, 3), 1), together) < TOLERANCE
    assert relative(run(slice(1, 2), 16), together[1:2]) < TOLERANCE
    assert relative(together[0], together[1]) > 0.1
