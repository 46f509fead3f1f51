"""Guidance rules; rescaled guidance against diffusers' own."""

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from seecoder.sampling.guidance import NEGATIVE, POSITIVE, ClassifierFree, rescaled
from seecoder.sampling.methods.scalecrafter.scalecrafter import DAMPING, NoiseDamped
from seecoder.sampling.step import Step

STEP = Step(0, 4, torch.tensor(981), 981.0, 1000, (12, 20), (8, 8))


@pytest.fixture
def fields() -> dict:
    """Fields of three pictures with deviations, and means, of their own."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64).view(3, 1, 1, 1)

    def field(factor: float) -> torch.Tensor:
        noise = torch.randn((3, 4, 12, 20), generator=generator, dtype=torch.float64)
        return factor * scales * (noise + 0.5 * scales)

    return {NEGATIVE: field(1.0), POSITIVE: field(1.3), DAMPING: field(0.8)}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_rescaled_guidance_is_that_of_diffusers(share, fields) -> None:
    guided, positive = 3.0 * fields[POSITIVE] - fields[NEGATIVE], fields[POSITIVE]
    expected = rescale_noise_cfg(guided, positive, share)
    torch.testing.assert_close(rescaled(guided, positive, share), expected, rtol=1e-12, atol=0)


def test_wholly_rescaled_guidance_has_the_deviation_of_each_pictures_own_prediction(fields) -> None:
    guided, positive = 7.5 * fields[POSITIVE] - 6.5 * fields[NEGATIVE], fields[POSITIVE]
    deviations = rescaled(guided, positive, 1.0).flatten(1).std(dim=1)
    torch.testing.assert_close(deviations, positive.flatten(1).std(dim=1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("share", [0.0, 0.7])
def test_guidance_rules_rescale_what_they_guided(share, fields) -> None:
    """By the conditional prediction, also where another network is the ground of the guided one."""
    negative, positive, damping = fields[NEGATIVE], fields[POSITIVE], fields[DAMPING]
    ordinary = rescale_noise_cfg(negative + 3.0 * (positive - negative), positive, share)
    damped = rescale_noise_cfg(damping + 3.0 * (positive - negative), positive, share)
    for rule, expected in (
        (ClassifierFree(3.0, share), ordinary),
        (NoiseDamped(3.0, share, until=1), damped),
        (NoiseDamped(3.0, share, until=0), ordinary),  # after its last step
    ):
        torch.testing.assert_close(rule.combine(fields, STEP), expected, rtol=1e-12, atol=1e-12)
