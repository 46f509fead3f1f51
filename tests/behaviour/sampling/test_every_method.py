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
from seecoder.sampling.methods.perceptual import pyramid_distance

DAMPED = ScaleCrafter(damping={"mid": 1.5}, damp_tau=0.7, disperse=["level.2"])
HALFWAY = RectifiedHR(switch_at=(0.4, 0.7), guidance_boost=(2.0, 2.0))
SYNC = SyncDiffusion(stride=4, sync_threshold=0.4, loss=pyramid_distance)
WINDOWS = MultiDiffusion(stride=4)
LARGE_WINDOWS = MultiDiffusion(window=12, stride=6)
METHODS = [
    [],
    [MultiDiffusion(stride=4, jitter=2, blend="feather")],
    [DemoFusion()],
    [DAMPED],
    [HiDiffusion()],
    [HALFWAY],
    [SYNC],
    [ScaleCrafter(), DemoFusion()],
    [HiDiffusion(), DemoFusion()],
    [WINDOWS, DemoFusion()],
    [SYNC, DemoFusion()],
    [DAMPED, HALFWAY],
    [HiDiffusion(), HALFWAY],
    [WINDOWS, HALFWAY],
    [LARGE_WINDOWS, DAMPED],
    [LARGE_WINDOWS, HiDiffusion()],
]
SCHEDULERS = ["ddim", "euler", "euler_ancestral", "dpm", "unipc", "lcm"]
SIZES = [(8, 8), (8, 32), (32, 8), (11, 15), (9, 19), (12, 16)]  # one window, 4:1, sides that are odd at every level
PAIRS = [  # every method at every size and with every scheduler, every size with every scheduler
    (methods, name, SIZES[(place + shift) % len(SIZES)])
    for shift, methods in enumerate(METHODS)
    for place, name in enumerate(SCHEDULERS)
]


def described(value) -> str:
    """Methods, scheduler or size, in the name of a test."""
    if isinstance(value, list):
        return "+".join(type(method).__name__ for method in value) or "plain"
    return value if isinstance(value, str) else "x".join(map(str, value))


@pytest.mark.parametrize(("methods", "name", "size"), PAIRS, ids=described)
def test_check_26_every_method_runs_at_any_size_with_any_scheduler(
    methods, name, size, make_scheduler, make_unet, denoiser_of, context
) -> None:
    """Guided, on a UNet that was trained at 8 x 8 cells."""
    unet = make_unet()
    latents = sample(
        denoiser_of(unet),
        make_scheduler(name),
        latent_shape=(1, 4, *size),
        native_size=(8, 8),
        num_inference_steps=3,
        context=context[:1],
        negative_context=context[1:2],
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(0),
        method=methods,
        decoder=lambda latents: latents[:, :3],
        encoder=lambda pixels: torch.cat([pixels, pixels[:, :1]], dim=1),
        unet=unet,
    )
    assert latents.shape == (1, 4, *size)
    assert latents.isfinite().all()
