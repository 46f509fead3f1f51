"""What a run offers to its stages."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from seecoder.sampling.guidance import ClassifierFree
from seecoder.sampling.path import Path
from seecoder.sampling.randomness import Randomness
from seecoder.sampling.stages import Run, Stage


@pytest.fixture
def run() -> Run:
    """Two pictures of 6 x 8 cells, at a first noise level of 3."""
    return Run(
        latent_shape=(2, 4, 6, 8),
        native_size=(4, 4),
        stepper=SimpleNamespace(initial_scale=3.0),
        randomness=Randomness([torch.Generator().manual_seed(seed) for seed in (1, 2)], 2),
        guidance_scale=1.0,
        guidance_rescale=0.0,
        device=torch.device("cpu"),
        dtype=torch.float64,
    )


def test_noise_is_drawn_for_every_picture_at_any_size(run) -> None:
    noise = run.noise((3, 5))
    assert (noise.shape, noise.dtype) == ((2, 4, 3, 5), torch.float64)
    assert not torch.equal(noise[0], noise[1])
    assert run.size == (6, 8)


def test_the_first_sample_is_noise_at_the_schedulers_first_level(run) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    drawn = torch.cat([torch.randn((1, 4, 3, 5), generator=entry, dtype=torch.float64) for entry in generators])
    assert torch.equal(run.first_start((3, 5)).latents, 3.0 * drawn)
    given = torch.ones((2, 4, 3, 5), dtype=torch.float64)
    assert torch.equal(replace(run, initial_noise=given).first_start((3, 5)).latents, 3.0 * given)


def test_given_noise_of_another_size_is_refused(run) -> None:
    given = replace(run, initial_noise=torch.ones((2, 4, 6, 8)))
    with pytest.raises(ValueError, match=r"`latents` has shape \(2, 4, 6, 8\); the first stage of this run needs"):
        given.first_start((3, 5))


def test_a_stage_draws_keys_if_one_of_its_paths_makes_random_choices() -> None:
    plain, keyed = Path(lambda step, image: ()), Path(lambda step, picture: (), keyed=True)
    stage = Stage("stage", (6, 8), range(3), lambda run, before: None, [plain, keyed], ClassifierFree(1.0))
    assert stage.keyed
    assert not replace(stage, paths=[plain]).keyed
