import torch

from seecoder.base_model.facts import STABLE_DIFFUSION_SCHEDULE
from train.settings import OptimizerSettings
from train.stages.denoising import DenoisingStage
from train.stages.noise_schedule import NoiseSchedule


def stage(prediction: str = "epsilon") -> DenoisingStage:
    made = DenoisingStage(OptimizerSettings(), seed=3)
    made.schedule = NoiseSchedule({**STABLE_DIFFUSION_SCHEDULE, "prediction_type": prediction})
    return made


def keys(*samples: int) -> torch.Tensor:
    return torch.tensor([[0, sample] for sample in samples])


def test_a_perfect_prediction_of_a_certain_latent_has_no_error():
    """With a known clean latent the noise follows from the noisy latent; see eq. 4 of Ho et al. 2020."""
    made, latents = stage(), torch.randn(3, 4, 2, 2)
    times = torch.tensor([10, 500, 990])

    def predict(noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        abar = made.schedule.alphas_cumprod[times].view(-1, 1, 1, 1)
        return (noisy - abar.sqrt() * latents) / (1 - abar).sqrt()

    moments = latents, torch.zeros_like(latents)
    assert float(made.prediction_errors(moments, keys(5, 6, 7), times, predict).max()) < 1e-6
    errors = made.prediction_errors(moments, keys(5, 6, 7), times, lambda noisy, times: torch.zeros_like(noisy))
    assert errors.shape == (3,)
    assert bool((errors > 0.1).all()), "the mean square of the noise itself"


def test_noise_and_timestep_belong_to_the_sample_and_not_to_its_batch():
    made, latents = stage("v_prediction"), torch.randn(2, 4, 2, 2)
    moments = latents, torch.ones_like(latents)

    def errors(rows: list[int]) -> torch.Tensor:
        own = keys(*(rows[index] + 8 for index in range(len(rows))))
        part = tuple(moment[rows] for moment in moments)
        return made.prediction_errors(part, own, made.uniform_timesteps(own), lambda noisy, times: noisy)  # type: ignore

    whole = errors([0, 1])
    assert torch.equal(whole[1:], errors([1]))
    assert not torch.equal(whole[:1], whole[1:])
    assert torch.equal(errors([0, 1]), whole)


def test_errors_are_logged_by_quarter_of_the_timesteps():
    made = stage()
    made.record_levels(torch.tensor([1.0, 3.0, 8.0]), torch.tensor([0, 249, 999]))
    assert made.take_records() == {"loss_level_1": (2.0, 1), "loss_level_4": (8.0, 1)}


def test_all_timesteps_are_equally_likely():
    times = stage().uniform_timesteps(keys(*range(4000)))
    assert times.dtype == torch.int64
    assert 0 <= int(times.min()) <= int(times.max()) <= 999
    counts = torch.bincount(times // 100, minlength=10)
    assert int(counts.min()) > 330
    assert int(counts.max()) < 470


def test_where_weights_are_zero_errors_do_not_count_and_a_small_part_counts_as_much_as_a_large_one():
    made, latents = stage(), torch.randn(2, 4, 4, 4)
    moments, times, own = (latents, torch.zeros_like(latents)), torch.tensor([10, 500]), keys(5, 6)
    weights = torch.zeros(2, 1, 4, 4)
    weights[0, :, :2], weights[1, :, 0, 0] = 1.0, 1.0

    def predict(noisy: torch.Tensor, times: torch.Tensor, outside: float = 0.0) -> torch.Tensor:
        return torch.where(weights.expand_as(noisy) > 0, 0.5, outside)

    errors = made.prediction_errors(moments, own, times, predict, weights)
    assert torch.equal(errors, made.prediction_errors(moments, own, times, lambda *two: predict(*two, 99.0), weights))
    full = made.prediction_errors(moments, own, times, lambda *two: predict(*two, 0.5))
    assert torch.allclose(
        made.prediction_errors(moments, own, times, lambda *two: predict(*two, 0.5), weights * 0 + 3), full
    )
    alone = made.prediction_errors((latents[1:], latents[1:] * 0), own[1:], times[1:], lambda noisy, _: noisy * 0 + 0.5)
    assert not torch.allclose(errors[1:], alone)
