import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from seecoder.base_model.facts import STABLE_DIFFUSION_SCHEDULE
from train.stages.noise_schedule import NoiseSchedule


def schedule(prediction: str = "epsilon") -> NoiseSchedule:
    return NoiseSchedule({**STABLE_DIFFUSION_SCHEDULE, "prediction_type": prediction})


def released_table(start: float = 0.00085, end: float = 0.012) -> np.ndarray:
    return np.cumprod(1 - np.linspace(start**0.5, end**0.5, 1000, dtype=np.float64) ** 2)


def test_the_schedule_is_the_released_one_and_not_the_papers_text():
    table = schedule().alphas_cumprod.double().numpy()
    assert np.abs(table - released_table()).max() < 5e-7
    assert table[-1] == pytest.approx(0.00466, abs=2e-5)
    literal = np.cumprod(1 - np.linspace(8.5e-5, 0.012, 1000))  # what the paper's text says
    assert np.abs(table - literal).max() > 0.05


@pytest.mark.parametrize("broken", [{"trained_betas": [0.1, 0.2]}, {"beta_end": 2.0}, {"beta_start": float("nan")}])
def test_a_schedule_that_is_none_is_refused(broken):
    with pytest.raises(ValueError, match=r"`betas` of the base must be 1000 numbers from 0 to 1\. Repair"):
        NoiseSchedule({**STABLE_DIFFUSION_SCHEDULE, **broken})


def test_ddim_timesteps():
    scheduler = DDIMScheduler.from_config(dict(STABLE_DIFFUSION_SCHEDULE))
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == list(range(981, 0, -20))
    assert float(scheduler.final_alpha_cumprod) == pytest.approx(0.99915, abs=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_target_and_noisy_latent_give_back_latent_and_noise(prediction):
    torch.manual_seed(0)
    latents, noise = torch.randn(2, 16, 4, 8, 8).unbind(0)
    times = torch.arange(16) * 62
    process = schedule(prediction)
    noisy, target = process.add_noise(latents, noise, times), process.target(latents, noise, times)
    abar = process.alphas_cumprod[times].double().view(-1, 1, 1, 1)
    signal, level = abar.sqrt(), (1 - abar).sqrt()
    if prediction == "epsilon":
        assert torch.equal(target, noise)
        return
    assert torch.allclose(signal * noisy - level * target, latents.double(), atol=1e-5)
    assert torch.allclose(level * noisy + signal * target, noise.double(), atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noise_and_targets_are_those_of_the_equations(prediction):
    """Ho et al. 2020, eq. 4; Salimans and Ho 2022, appendix D; to the last bit of float32."""
    torch.manual_seed(0)
    latents, noise = torch.randn(2, 1000, 4, 4, 4).unbind(0)
    times = torch.arange(1000)
    process = schedule(prediction)
    signal, level = (part.view(-1, 1, 1, 1).sqrt() for part in (process.alphas_cumprod, 1 - process.alphas_cumprod))
    assert torch.equal(process.add_noise(latents, noise, times), signal * latents + level * noise)
    expected = noise if prediction == "epsilon" else signal * noise - level * latents
    assert torch.equal(process.target(latents, noise, times), expected)


def test_a_cast_of_the_module_around_it_leaves_the_schedule_in_float32():
    module = torch.nn.Module()
    module.schedule = schedule()
    module.to(torch.bfloat16)
    assert module.schedule.alphas_cumprod.dtype == module.schedule.scheduler.alphas_cumprod.dtype == torch.float32


def test_a_rounded_schedule_and_rounded_timesteps_are_refused():
    latents = torch.randn(1, 4, 2, 2)
    broken = schedule()
    broken.scheduler.alphas_cumprod = broken.scheduler.alphas_cumprod.bfloat16()
    with pytest.raises(AssertionError, match="bfloat16"):
        broken.add_noise(latents, latents, torch.tensor([3]))
    for method in ("add_noise", "target"):
        with pytest.raises(AssertionError, match="need float32 and int64"):
            getattr(schedule(), method)(latents, latents, torch.tensor([3.0]))


def test_half_precision_latents_are_noised_in_float32():
    latents = torch.randn(2, 4, 2, 2).half()
    assert schedule().add_noise(latents, latents, torch.tensor([1, 999])).dtype == torch.float32


def test_min_snr_weights():
    process = schedule()
    times = torch.arange(1000)
    assert torch.equal(process.min_snr_weights(times, None), torch.ones(1000))
    weights = process.min_snr_weights(times, 5.0)
    snr = process.alphas_cumprod / (1 - process.alphas_cumprod)
    assert torch.equal(weights < 1, snr > 5)
    assert int((weights < 1).sum()) == 147  # of 1,000 timesteps of this schedule
    assert float(weights.mean()) == pytest.approx(0.917, abs=2e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights_where_no_signal_is_left(prediction):
    """At zero terminal SNR min(SNR, gamma) / SNR is 1 in the limit, and min(SNR, gamma) / (SNR + 1) is 0."""
    config = {**STABLE_DIFFUSION_SCHEDULE, "prediction_type": prediction, "rescale_betas_zero_snr": True}
    process = NoiseSchedule(config)
    assert float(process.alphas_cumprod[-1]) == 0
    weights = process.min_snr_weights(torch.arange(1000), 5.0)
    assert float(weights[-1]) == (1.0 if prediction == "epsilon" else 0.0)
    assert bool(weights.isfinite().all())
    times, mean = process.weighted_timesteps(torch.linspace(0, 0.999, 100, dtype=torch.float64), 5.0)
    assert len(times.unique()) > 50
    assert float(mean) == pytest.approx(float(weights.mean()))


def test_min_snr_weights_of_velocity():
    process, times = schedule("v_prediction"), torch.arange(1000)
    snr = (process.alphas_cumprod / (1 - process.alphas_cumprod)).double()
    expected = snr.clamp(max=5.0) / (snr + 1)
    torch.testing.assert_close(process.min_snr_weights(times, 5.0).double(), expected, rtol=1e-5, atol=1e-7)


def test_other_predictions_are_refused():
    with pytest.raises(ValueError, match="sample"):
        schedule("sample")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [0.2, 5.0, None])
def test_weighted_timesteps_have_the_mean_of_weighted_losses(prediction, gamma):
    process = schedule(prediction)
    draws = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    times, weight = process.weighted_timesteps(draws, gamma)
    assert times.dtype == torch.int64
    errors = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = (errors * process.min_snr_weights(torch.arange(1000), gamma)).mean()
    assert float((errors[times] * weight).mean()) == pytest.approx(float(expected), rel=1e-4)
    shares = torch.bincount(times, minlength=1000) / len(times)
    assert torch.allclose(shares, process.min_snr_weights(torch.arange(1000), gamma) / weight / 1000, atol=3e-6)
    ends, _ = process.weighted_timesteps(torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), gamma)
    assert ends.tolist() == [0, 999]
