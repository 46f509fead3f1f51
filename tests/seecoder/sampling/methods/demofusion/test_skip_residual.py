"""How much each step of a phase says about its result, and the residual itself."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from seecoder.sampling.methods.demofusion.skip_residual import (
    SkipResidual,
    cosine_decay,
    first_live_step,
    influence,
    skip_residual,
    skip_weight,
)

SD_TIMESTEPS = [981 - 20 * index for index in range(50)]


def test_check_08_cosine_decay_falls_from_one_to_zero() -> None:
    decays = [cosine_decay(timestep, 1000) for timestep in range(1001)]
    assert decays[1000] == 1.0
    assert decays[0] == pytest.approx(0.0, abs=1e-12)
    assert all(earlier < later for earlier, later in itertools.pairwise(decays))


def test_check_11_the_influence_table_of_fifty_steps() -> None:
    weights = [skip_weight(cosine_decay(timestep, 1000), 3.0) for timestep in SD_TIMESTEPS]
    limits = (1e-6, 1e-4, 1e-3, 1e-2, 5e-2)
    assert [first_live_step(weights, limit) for limit in limits] == [6, 9, 11, 13, 16]
    assert influence(weights)[-1] == 1.0


def test_influence_is_the_weight_of_a_step_in_a_chain_of_residuals() -> None:
    """Each step replaces the sample by its own prediction; then the residual takes its part of it."""
    weights = [0.9, 0.5, 0.25, 0.0]
    predictions = torch.eye(4, dtype=torch.float64)
    total = torch.zeros(4, dtype=torch.float64)
    for weight, prediction in zip(weights, predictions, strict=True):
        total = skip_residual(total, torch.zeros_like(total), weight) + prediction
    assert total.tolist() == pytest.approx(influence(weights))


def test_the_residual_mixes_the_sample_with_the_reference_noised_to_the_step() -> None:
    stepper = SimpleNamespace(add_noise=lambda x0, noise, index: x0 + index * noise)
    latents, reference, noise = torch.randn((3, 2, 4, 5, 5), dtype=torch.float64)
    editor = SkipResidual(reference, noise, lambda step: 0.25, stepper)
    edited = editor.apply(latents, SimpleNamespace(index=2), evaluator=None)
    assert torch.allclose(edited.latents, 0.75 * latents + 0.25 * (reference + 2 * noise))


@pytest.mark.parametrize(("weight", "is_large"), [(0.02, True), (0.01, False), (0.0, False)])
def test_only_noticeable_edits_restart_a_scheduler(weight, is_large) -> None:
    editor = SkipResidual(torch.zeros(1), torch.zeros(1), lambda step: weight, SimpleNamespace())
    assert editor.is_large(SimpleNamespace(index=0)) == is_large
