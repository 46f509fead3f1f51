"""What a run offers to its stages."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from seecoder.sampling import Progress, RectifiedHR, StageEnd, sample
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


@pytest.fixture
def sampled(make_scheduler):
    """A run of two stages, of four steps and of one."""

    def run(**listeners) -> torch.Tensor:
        return sample(
            lambda latents, timestep, context: 0.1 * latents,
            make_scheduler("ddim"),
            latent_shape=(1, 4, 16, 16),
            native_size=(8, 8),
            num_inference_steps=5,
            context=torch.zeros((1, 2, 8), dtype=torch.float64),
            generator=torch.Generator().manual_seed(0),
            method=RectifiedHR(switch_at=(0.8,), resize_in="latents"),
            **listeners,
        )

    return run


def test_steps_are_counted_over_all_stages(sampled, make_scheduler) -> None:
    told: list[Progress] = []
    result = sampled(on_step=told.append)
    assert [(entry.stage, entry.step, entry.num_steps) for entry in told] == [
        ("stage 1 of 2", 1, 5),
        ("stage 1 of 2", 2, 5),
        ("stage 1 of 2", 3, 5),
        ("stage 1 of 2", 4, 5),
        ("stage 2 of 2", 5, 5),
    ]
    scheduler = make_scheduler("ddim")
    scheduler.set_timesteps(5)
    assert [entry.timestep for entry in told] == scheduler.timesteps.tolist()
    assert (told[-1].stage_index, told[-1].num_stages) == (1, 2)
    assert torch.equal(told[-1].latents, result)


def test_a_stage_that_ends_in_noise_shows_its_predicted_x0(sampled, make_scheduler) -> None:
    steps: list[Progress] = []
    ends: list[StageEnd] = []
    result = sampled(on_step=steps.append, on_stage=ends.append)
    assert [(end.stage, end.stage_index, end.num_stages) for end in ends] == [
        ("stage 1 of 2", 0, 2),
        ("stage 2 of 2", 1, 2),
    ]
    scheduler = make_scheduler("ddim")
    scheduler.set_timesteps(5)
    seen = steps[2].latents  # what the last step of the first stage began with
    expected = scheduler.step(0.1 * seen, scheduler.timesteps[3], seen).pred_original_sample
    torch.testing.assert_close(ends[0].latents, expected)
    assert torch.equal(ends[1].latents, result)


def test_nobody_has_to_listen(sampled) -> None:
    assert torch.equal(sampled(), sampled(on_step=lambda progress: None, on_stage=lambda end: None))
