"""Toy denoisers and schedulers for the sampling tests.

The checks that need no weights are numbered 1 to 26; a test that makes one is called `test_check_NN_…`:

Identity and fusion: 1 one window equals the plain loop (test_engine); 2 pointwise networks have no seams, 4 fuse then
step (test_multidiffusion); 3 partition of unity (test_views, test_fields); 5 order, batch and micro-batch
(test_engine); 6 wrapped views roll (test_multidiffusion, test_decoding).
DemoFusion: 7 lattices (test_views); 8 schedules, 10 limits, 11 dead steps, 12 the sigma that views see, 13 counts
(test_demofusion, test_views); 9 blur (test_filters).
ScaleCrafter: 14 and 15 re-dilation, 18 patch and restore (test_redilation); 16 progressive, 19 damping
(test_scalecrafter); 17 dispersion (test_dispersion).
SyncDiffusion: 20 gradients, 21 closed loops (test_syncdiffusion, test_views).
Robustness: 22 seeds, 23 parametrisations, 24 multistep history, 26 odd sizes and memory (test_engine,
test_every_method); 25 tiled decoding (test_decoding).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)

CLASSES = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "dpm": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "lcm": LCMScheduler,
    "pndm": PNDMScheduler,
    "heun": HeunDiscreteScheduler,
    "dpm2": KDPM2DiscreteScheduler,
}
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD_SPACING = {"timestep_spacing": "leading", "steps_offset": 1}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Diffusers' schedulers hand torch tensors to numpy in a way that numpy 2 deprecates; nothing here can help it."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:__array_(_|wrap__):DeprecationWarning"))


@pytest.fixture
def make_scheduler() -> Callable[..., Any]:
    """A scheduler by name, with Stable Diffusion's schedule and timesteps."""

    def make(name: str, **options: Any) -> Any:
        settings = SCHEDULE | ({} if name in ("lcm", "pndm") else SD_SPACING) | options
        if name in ("ddim", "lcm"):
            settings |= {"clip_sample": False}
        if name == "ddim":
            settings |= {"set_alpha_to_one": False}
        return CLASSES[name](**settings)

    return make


class ToyDenoiser(torch.nn.Module):
    """Two convolutions that see the sample, the time and the context; counts its calls."""

    def __init__(self, kernel: int = 3, circular: bool = False, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        mode = "circular" if circular else "zeros"
        self.first = torch.nn.Conv2d(4, 6, kernel, padding=kernel // 2, padding_mode=mode)
        self.second = torch.nn.Conv2d(6, 4, kernel, padding=kernel // 2, padding_mode=mode)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
        self.to(dtype).requires_grad_(False)
        self.calls: list[tuple[torch.Tensor, float]] = []
        self.largest_batch = 0
        self.evaluations = 0.0

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        self.largest_batch = max(self.largest_batch, latents.shape[0])
        self.evaluations += latents.shape[0] * latents.shape[2] * latents.shape[3]
        self.calls.append((latents.detach().clone(), float(timestep)))
        shift = context.mean(dim=(1, 2)).view(-1, 1, 1, 1) + float(timestep) / 1000
        return latents * 0.5 + self.second(torch.tanh(self.first(latents) + shift))


@pytest.fixture
def make_denoiser() -> Callable[..., ToyDenoiser]:
    return ToyDenoiser


@pytest.fixture
def make_unet() -> Callable[..., Any]:
    """A real diffusers UNet of a few thousand weights; every weight random, so that nothing is trivially zero."""

    def make(levels: int = 3, dtype: torch.dtype = torch.float64) -> UNet2DConditionModel:
        channels = (8, 16, 16, 16)[:levels]
        unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=channels,
            layers_per_block=1,
            down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * (levels - 1)),
            up_block_types=(*["CrossAttnUpBlock2D"] * (levels - 1), "UpBlock2D"),
            cross_attention_dim=8,
            attention_head_dim=2,
            norm_num_groups=4,
        )
        generator = torch.Generator().manual_seed(0)
        for parameter in unet.parameters():
            # Drawn in float64 and without bias towards zero: the numbers in published.json belong to these weights.
            parameter.data = (torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.15).to(dtype)
        return unet.eval().requires_grad_(False)

    return make


@pytest.fixture
def denoiser_of() -> Callable[..., Any]:
    """The bare callable that a pipeline makes of a UNet; `rows` collects the batch size of every call."""

    def make(unet: Any, rows: list[int] | None = None) -> Any:
        def denoise(latents: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, **conditions: Any) -> Any:
            if rows is not None:
                rows.append(len(latents))
            return unet(latents, timestep, encoder_hidden_states=context, return_dict=False, **conditions)[0]

        return denoise

    return make


@pytest.fixture
def context() -> torch.Tensor:
    """(3, 5, 8): one row per picture of a batch of up to three."""
    return torch.randn((3, 5, 8), generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.fixture
def seeds() -> Callable[..., list[torch.Generator]]:
    """Fresh generators with the given seeds."""
    return lambda *values: [torch.Generator().manual_seed(value) for value in values]


@pytest.fixture
def relative() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """Largest difference relative to the largest value."""
    return lambda actual, expected: float((actual - expected).abs().max() / expected.abs().max())
