import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, KDPM2AncestralDiscreteScheduler, KDPM2DiscreteScheduler

from seecoder.sampling.randomness import Randomness
from seecoder.sampling.stepper import Stepper

CPU = torch.device("cpu")


def make(scheduler, steps=10, eta=0.0, schedule=None):
    randomness = Randomness(torch.Generator().manual_seed(0), 1)
    return Stepper(scheduler, steps, eta=eta, randomness=randomness, device=CPU, schedule=schedule)


@pytest.mark.parametrize("name", ["ddim", "euler", "euler_ancestral", "dpm", "unipc", "lcm"])
def test_noising_agrees_with_the_scheduler_itself(name, make_scheduler) -> None:
    scheduler = make_scheduler(name)
    stepper = make(scheduler)
    scheduler.set_timesteps(10)
    x0, noise = torch.randn((2, 1, 4, 5, 5), dtype=torch.float64)
    for index in (0, 4, 9):
        expected = scheduler.add_noise(x0, noise, scheduler.timesteps[index : index + 1])
        assert torch.allclose(stepper.add_noise(x0, noise, index), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm", "unipc"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_predicted_x0_is_the_one_that_was_noised(name, prediction_type, make_scheduler) -> None:
    stepper = make(make_scheduler(name, prediction_type=prediction_type))
    x0, noise = torch.randn((2, 1, 4, 5, 5), dtype=torch.float64)
    for index in (0, 5, 9):
        alpha, sigma = stepper.alphas_cumprod[index] ** 0.5, (1 - stepper.alphas_cumprod[index]) ** 0.5
        output = {"epsilon": noise, "sample": x0, "v_prediction": alpha * noise - sigma * x0}
        sample = stepper.add_noise(x0, noise, index)
        assert torch.allclose(stepper.predict_x0(output[prediction_type], sample, index), x0, atol=1e-9)


@pytest.mark.parametrize("name", ["ddim", "euler"])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_carrying_over_keeps_the_noise_that_was_predicted(name, prediction_type, make_scheduler) -> None:
    """Converting through the noise and back is what `carry_over` must equal."""
    stepper = make(make_scheduler(name, prediction_type=prediction_type))
    seen, sample, output = torch.randn((3, 1, 4, 5, 5), dtype=torch.float64)
    for index in (0, 5, 9):
        alpha, sigma = stepper.coefficients(index)
        noise = (seen - alpha * stepper.predict_x0(output, seen, index)) / sigma
        moved = stepper.carry_over(output, seen, sample, index)
        moved_noise = (sample - alpha * stepper.predict_x0(moved, sample, index)) / sigma
        assert torch.allclose(moved_noise, noise, rtol=1e-6, atol=1e-8)
        assert torch.allclose(stepper.carry_over(output, seen, seen, index), output)


def test_carrying_over_is_finite_where_no_signal_is_left(make_scheduler) -> None:
    scheduler = make_scheduler(
        "ddim", prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    stepper = make(scheduler)
    assert stepper.alphas_cumprod[0] < 1e-6
    seen, sample, output = torch.randn((3, 1, 4, 5, 5), dtype=torch.float64)
    assert torch.allclose(stepper.carry_over(output, seen, sample, 0), output, atol=1e-2)


@pytest.mark.parametrize("name", ["dpm", "unipc"])
def test_check_24_restart_leaves_no_history(name, make_scheduler) -> None:
    stepper = make(make_scheduler(name))
    sample = torch.randn((1, 4, 5, 5))
    first = stepper.step(sample * 0.1, sample, 0)
    stepper.step(sample * 0.3, first, 1)
    stepper.restart(0)
    assert all(output is None for output in stepper._scheduler.model_outputs)
    assert torch.equal(stepper.step(sample * 0.1, sample, 0), first)


def test_the_given_scheduler_is_never_changed(make_scheduler) -> None:
    scheduler = make_scheduler("dpm")
    before = dict(vars(scheduler))
    stepper = make(scheduler)
    stepper.step(torch.ones(1, 4, 5, 5), torch.ones(1, 4, 5, 5), 0)
    assert vars(scheduler).keys() == before.keys()
    assert all(vars(scheduler)[name] is value for name, value in before.items())


def test_schedulers_that_cannot_serve_are_refused(make_scheduler) -> None:
    with pytest.raises(ValueError, match="'FlowMatchEulerDiscreteScheduler' cannot sample a Stable Diffusion base"):
        make(FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match=r"`eta`=1.0 has no effect with EulerDiscreteScheduler"):
        make(make_scheduler("euler"), eta=1.0)
    with pytest.raises(ValueError, match="PNDMScheduler cannot start inside its trajectory"):
        make(make_scheduler("pndm")).restart(3)


def test_half_steps_of_two_evaluation_schedulers_are_no_boundaries(make_scheduler) -> None:
    stepper = make(make_scheduler("heun"), steps=4)
    assert [stepper.is_boundary(index) for index in range(len(stepper))] == [
        True,
        False,
        True,
        False,
        True,
        False,
        True,
    ]


@pytest.mark.parametrize("scheduler", [KDPM2DiscreteScheduler, KDPM2AncestralDiscreteScheduler])
def test_half_steps_of_dpm2_have_the_noise_level_that_their_input_is_scaled_for(scheduler) -> None:
    stepper = make(scheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"), steps=6)
    sample = torch.ones((1, 1, 1, 1), dtype=torch.float64)
    for index in range(len(stepper)):
        alpha = float(stepper.scale_input(sample, index))
        assert stepper.alphas_cumprod[index] ** 0.5 == pytest.approx(alpha, rel=1e-5)  # timesteps are float32
        stepper.step(torch.zeros_like(sample), sample, index)


@pytest.mark.parametrize(("name", "whole"), [("ddim", [0, 1, 2, 3]), ("heun", [0, 0, 2, 2])])
def test_a_whole_step_is_found_backwards(name, whole, make_scheduler) -> None:
    stepper = make(make_scheduler(name), steps=4)
    assert [stepper.whole_step(index) for index in range(4)] == whole


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("euler", {"timesteps": [901, 500, 77]}),
        ("euler", {"sigmas": [9.0, 2.0, 0.4, 0.0]}),
        ("dpm", {"timesteps": [901, 500, 77]}),
        ("lcm", {"timesteps": [901, 500, 77]}),
    ],
)
def test_a_given_schedule_takes_the_place_of_the_spacing(name, schedule, make_scheduler) -> None:
    stepper = make(make_scheduler(name), schedule=schedule)
    expected = make_scheduler(name)
    expected.set_timesteps(**schedule)
    assert len(stepper) == stepper.num_inference_steps == 3
    assert stepper.times == [float(time) for time in expected.timesteps]
    if "sigmas" in schedule:
        found = [stepper.coefficients(index)[1] for index in range(3)]
        assert found == pytest.approx(schedule["sigmas"][:3], rel=1e-5)
    stepper.restart(1)
    assert stepper.times == [float(time) for time in expected.timesteps]


@pytest.mark.parametrize(("name", "given"), [("ddim", "timesteps"), ("ddim", "sigmas"), ("dpm", "sigmas")])
def test_a_schedule_that_a_scheduler_does_not_take_is_refused(name, given, make_scheduler) -> None:
    with pytest.raises(ValueError, match=rf"`{given}`=\[9, 2\] has no effect with .*, which spaces its steps itself"):
        make(make_scheduler(name), schedule={given: [9, 2]})


def test_the_clean_latents_in_a_sample_count_in_full_at_the_end(make_scheduler) -> None:
    stepper = make(make_scheduler("ddim"), steps=4)
    assert stepper.alpha_after(0) == stepper.coefficients(1)[0]
    assert stepper.alpha_after(3) == 1.0
