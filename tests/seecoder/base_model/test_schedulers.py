"""Schedulers by the configuration of a base: made, repaired, replaced or refused."""

import json
import logging
from typing import Any

import diffusers
import pytest
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)

from seecoder.base_model.schedulers import (
    check_scheduler,
    fitting_scheduler,
    is_edm,
    repaired,
    scheduler_from_config,
    training_schedule,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array_(_|wrap__):DeprecationWarning")  # of numpy, inside diffusers

# What scheduler_config.json of Stable Diffusion 1.5 holds.
SD15: dict[str, Any] = json.loads("""{"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": false,
    "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null, "clip_sample": false}""")
EDM: dict[str, Any] = {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0}


def test_the_scheduler_of_a_configuration_is_made() -> None:
    scheduler = scheduler_from_config(SD15)
    assert type(scheduler) is PNDMScheduler
    assert scheduler.config["skip_prk_steps"]


@pytest.mark.parametrize("name", ["DDIM", "DDIMScheduler"])
def test_another_scheduler_has_the_schedule_of_the_base(name: str) -> None:
    scheduler = scheduler_from_config(SD15, name)
    assert type(scheduler) is DDIMScheduler
    assert (scheduler.config["beta_start"], scheduler.config["steps_offset"]) == (0.00085, 1)


def test_a_setting_that_means_something_else_to_another_class_is_left_out() -> None:
    sde = {**SD15, "_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}
    assert scheduler_from_config(sde).config["algorithm_type"] == "sde-dpmsolver++"
    assert scheduler_from_config(sde, "DEISMultistep").config["algorithm_type"] == "deis"
    assert scheduler_from_config(sde, "SASolver").config["algorithm_type"] == "data_prediction"


@pytest.mark.parametrize("name", ["DDIMWrong", "os.system", "UNet2DConditionModelScheduler"])
def test_what_is_no_scheduler_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a scheduler of diffusers"):
        scheduler_from_config(SD15, name)


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscrete", "DDIMInverse", "CogVideoXDDIM", "UnCLIP"])
def test_schedulers_for_other_things_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=rf"`scheduler`='{name}Scheduler' cannot sample a Stable Diffusion base"):
        scheduler_from_config(SD15, name)


def test_a_base_of_edm_and_one_of_betas_have_schedulers_of_their_own_kind() -> None:
    assert is_edm(EDM)
    assert not is_edm(SD15)
    assert type(scheduler_from_config(EDM)) is EDMEulerScheduler
    with pytest.raises(ValueError, match=r"'DDIMScheduler' must be of the kind .* Use EDMDPM.* or EDMEulerScheduler\."):
        scheduler_from_config(EDM, "DDIM")
    with pytest.raises(ValueError, match=r"'EDMEulerScheduler' must be of the kind .* Use DDIMScheduler or Euler"):
        scheduler_from_config(SD15, "EDMEuler")


def test_a_solver_that_no_generator_reaches_is_replaced_which_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "seecoder"):
        scheduler = scheduler_from_config({**SD15, "_class_name": "DPMSolverSDEScheduler", "use_karras_sigmas": True})
    assert type(scheduler) is DPMSolverMultistepScheduler
    assert scheduler.config["algorithm_type"] == "sde-dpmsolver++"
    assert scheduler.config["use_karras_sigmas"]
    assert [record.message for record in caplog.records] == [
        "DPMSolverSDEScheduler draws noise that no generator can repeat; DPMSolverMultistepScheduler (SDE) took its "
        "place."
    ]


def test_flow_matching_is_refused_however_it_is_asked_for() -> None:
    for refused in (FlowMatchEulerDiscreteScheduler(), FlowMatchEulerDiscreteScheduler.from_config(SD15)):
        with pytest.raises(ValueError, match="cannot sample a Stable Diffusion base"):
            check_scheduler(refused)
    with pytest.raises(ValueError, match="is set to flow matching"):
        check_scheduler(DPMSolverMultistepScheduler(use_flow_sigmas=True))
    with pytest.raises(ValueError, match="is set to 'flow_prediction'"):
        scheduler_from_config({**SD15, "prediction_type": "flow_prediction"}, "UniPCMultistep")


def test_settings_that_would_fail_in_the_first_step_or_be_taken_for_noise_are_refused() -> None:
    learned = {**SD15, "_class_name": "DDPMScheduler", "variance_type": "learned_range"}  # DeepFloyd's
    for name in (None, "DPMSolverMultistep"):
        with pytest.raises(ValueError, match=r"`variance_type`='learned_range' of .* must be a fixed one"):
            scheduler_from_config(learned, name)
    with pytest.raises(ValueError, match="`variance_type`='learned' of DDPMScheduler must be"):
        check_scheduler(DDPMScheduler(variance_type="learned"))
    samples = {**SD15, "_class_name": "DDIMScheduler", "prediction_type": "sample"}
    check_scheduler(scheduler_from_config(samples))
    for name in ("PNDM", "EulerAncestralDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete"):
        with pytest.raises(ValueError, match=f"`scheduler`='{name}Scheduler' does not know a base that predicts samp"):
            scheduler_from_config(samples, name)


def test_a_class_of_ones_own_serves_if_it_is_derived_from_one_that_does() -> None:
    class Own(DDIMScheduler):
        """Somebody's own."""

    check_scheduler(Own())


def test_outdated_configurations_are_repaired_in_a_copy() -> None:
    for outdated in (DDIMScheduler(), DDPMScheduler(steps_offset=1)):
        before = dict(outdated.config)
        scheduler = repaired(outdated)
        assert type(scheduler) is type(outdated)
        assert (scheduler.config["clip_sample"], scheduler.config["steps_offset"]) == (False, 1)
        assert dict(outdated.config) == before
    kept = repaired(DDIMScheduler(), steps_offset=False)
    assert (kept.config["clip_sample"], kept.config["steps_offset"]) == (False, 0)


def test_what_is_up_to_date_stays_the_same_object() -> None:
    for current in (DDIMScheduler(clip_sample=False, steps_offset=1), EDMEulerScheduler()):
        assert repaired(current) is current


def test_only_a_run_that_restarts_replaces_pndm() -> None:
    published = PNDMScheduler.from_config(SD15)
    assert fitting_scheduler(published, restarts=False) == (published, [])
    scheduler, notes = fitting_scheduler(published, restarts=True)
    assert type(scheduler) is DDIMScheduler
    assert scheduler.betas.equal(published.betas)
    assert (scheduler.config["clip_sample"], scheduler.config["set_alpha_to_one"]) == (False, False)
    assert len(notes) == 1
    assert notes[0].startswith("PNDMScheduler cannot begin inside its trajectory")
    euler = EulerDiscreteScheduler()
    assert fitting_scheduler(euler, restarts=True) == (euler, [])


def test_training_takes_the_betas_of_any_scheduler_that_has_them() -> None:
    for name in ("PNDMScheduler", "EulerDiscreteScheduler", "LCMScheduler", "DPMSolverSDEScheduler"):
        schedule = training_schedule({**SD15, "_class_name": name})
        assert schedule.betas.equal(PNDMScheduler.from_config(SD15).betas)
    assert training_schedule({}).config["clip_sample"] is False


def test_training_predicts_what_the_base_says_and_noise_where_it_says_nothing() -> None:
    for config, predicted in (({}, "epsilon"), ({**SD15, "prediction_type": "v_prediction"}, "v_prediction")):
        assert training_schedule(config).config["prediction_type"] == predicted


@pytest.mark.parametrize(
    "config",
    [
        EDM,
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
        {**SD15, "_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True},
        {**SD15, "_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"},
    ],
)
def test_training_refuses_noise_that_is_not_of_betas(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"`scheduler`='{config['_class_name']}' of the base must be one that "):
        training_schedule(config)


def is_served(name: str) -> bool:
    try:
        check_scheduler(scheduler_from_config(EDM if name.startswith("EDM") else SD15, name))
    except ValueError:
        return False
    return True


def test_what_diffusers_exchanges_in_its_pipelines_is_served_and_other_kinds_are_not() -> None:
    served = {name for name in dir(diffusers) if name.endswith("Scheduler") and is_served(name)}
    assert {entry.name for entry in diffusers.schedulers.KarrasDiffusionSchedulers} <= served
    assert {"LCMScheduler", "TCDScheduler", "SASolverScheduler", "EDMDPMSolverMultistepScheduler"} <= served
    assert not [name for name in served if "FlowMatch" in name or "Inverse" in name or "Cog" in name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta_schedule": "sigmoid"}, "`beta_schedule`='sigmoid' of the base must be one of DDIMScheduler's"),
        ({"variance_type": "learned_range"}, "`variance_type`='learned_range'"),
    ],
)
def test_no_training_on_betas_or_variances_that_nothing_here_knows(changes, message):
    with pytest.raises(ValueError, match=message):
        training_schedule({**SD15, "_class_name": "DDPMScheduler", **changes})
