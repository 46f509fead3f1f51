"""What the caller of a run is told."""

import pytest
import torch

from seecoder.sampling import Progress, RectifiedHR, StageEnd, sample


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
