"""Which of diffusers' schedulers can sample a base, and what is done about those that cannot.

Every scheduler of Stable Diffusion's kind serves as it is: one that was made from betas and steps from any noise level
to the next. EDM's (Karras et al. 2022, arXiv 2206.00364) serve the bases that were trained with them. Others are
replaced by the nearest that serves, which is said, or refused: flow matching, inverse and video schedulers.
"""

import copy
import logging
from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from diffusers.schedulers import KarrasDiffusionSchedulers

logger = logging.getLogger(__name__)

_EDM = ("EDMDPMSolverMultistepScheduler", "EDMEulerScheduler")
# Those that diffusers' pipelines exchange for each other, among which it counts one of EDM's, and five more.
_FROM_BETAS = {member.name for member in KarrasDiffusionSchedulers}.difference(_EDM)
_FROM_BETAS |= {f"{name}Scheduler" for name in ("DDIMParallel", "DDPMParallel", "LCM", "SASolver", "TCD")}
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_NO_SAMPLES = (  # they stop at "sample" in their first step, or take it for noise
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "PNDMScheduler",
)
_SDE = "DPMSolverSDEScheduler"  # draws from a seed of its own, whatever generator a call has, and needs torchsde


def is_edm(config: Mapping[str, Any]) -> bool:
    """Say whether a scheduler's configuration is one of EDM's: noise levels of their own in place of betas.

    Args:
        config: What `scheduler_config.json` holds.
    """
    return config.get("_class_name") in _EDM or ("sigma_data" in config and "beta_start" not in config)


def check_scheduler(scheduler: Any) -> None:
    """Refuse a scheduler that cannot sample a Stable Diffusion base.

    Args:
        scheduler: An object; a class of somebody else's has to be derived from one of diffusers' that can.

    Raises:
        ValueError: It is of another kind, or set to flow matching or to what no UNet here predicts.
    """
    names = [cls.__name__ for cls in type(scheduler).__mro__]
    _check_kind(next((name for name in names if name in (*_FROM_BETAS, *_EDM)), names[0]))
    _check_prediction(names[0], scheduler.config)


def scheduler_from_config(config: Mapping[str, Any], name: str | None = None) -> Any:
    """Make the scheduler of a base, or another one with the schedule of the base.

    Args:
        config: What the base's `scheduler_config.json` holds.
        name: Another class than the configuration's, with or without "Scheduler" at its end, such as "DDIM".

    Returns:
        A scheduler of diffusers. In the place of `DPMSolverSDEScheduler` it is the multistep solver of the same
        equation, and the log says so.

    Raises:
        ValueError: The class does not exist or cannot sample a base, or goes with another kind of base.
    """
    own = str(config.get("_class_name"))
    wanted = own if name is None else name if name.endswith("Scheduler") else f"{name}Scheduler"
    _check_kind(own)
    _check_kind(wanted)
    _check_prediction(wanted, config)
    if (wanted in _EDM) != is_edm(config):
        raise ValueError(
            f"`scheduler`={wanted!r} must be of the kind that the base was trained with, which has {own}. Use "
            f"{' or '.join(_EDM if is_edm(config) else ('DDIMScheduler', 'EulerDiscreteScheduler'))}."
        )
    if wanted == _SDE:
        scheduler, note = _multistep_sde(config)
        logger.warning(note)
        return scheduler
    # The same word says other things to other classes, which refuse those that they do not know.
    settings = {key: value for key, value in config.items() if wanted == own or key != "algorithm_type"}
    return getattr(diffusers, wanted).from_config(settings)


def training_schedule(config: Mapping[str, Any]) -> DDIMScheduler:
    """Make the schedule that a base was trained with, whatever its own scheduler does with the same betas.

    Args:
        config: What the base's `scheduler_config.json` holds.

    Raises:
        ValueError: The base was not trained on discrete timesteps of a schedule of betas (EDM, flow matching), or its
            UNet predicts variances, too.
    """
    name = str(config.get("_class_name", "DDIMScheduler"))
    has_betas = name in _FROM_BETAS and not config.get("use_flow_sigmas")
    if not has_betas or config.get("timestep_type", "discrete") != "discrete":
        raise ValueError(
            f"`scheduler`={name!r} of the base must be one that is made from betas, as DDIMScheduler is: training "
            "noises latents by these. Use a Stable Diffusion base (1.x, 2.x, XL)."
        )
    _check_prediction("DDIMScheduler", config)
    try:
        return repaired(DDIMScheduler.from_config(dict(config)))
    except NotImplementedError as error:  # such as "sigmoid", which others of diffusers know
        raise ValueError(
            f"`beta_schedule`={config.get('beta_schedule')!r} of the base must be one of DDIMScheduler's: linear, "
            "scaled_linear, squaredcos_cap_v2. Use a Stable Diffusion base (1.x, 2.x, XL)."
        ) from error


def repaired(scheduler: Any, *, steps_offset: bool = True) -> Any:
    """Bring an outdated configuration up to date, as the constructor of `StableDiffusionPipeline` does.

    Files from before these settings existed lack `clip_sample`, whose default clips latents to [-1, 1], and have a
    `steps_offset` of 0.

    Args:
        scheduler: The scheduler; never changed.
        steps_offset: Whether the offset counts; diffusers' pipeline of SDXL leaves it.

    Returns:
        The same object if its configuration is up to date, else a copy.
    """
    changes: dict[str, Any] = {"clip_sample": False} if scheduler.config.get("clip_sample", False) is True else {}
    if steps_offset and scheduler.config.get("steps_offset", 1) != 1:
        changes["steps_offset"] = 1
    if not changes:
        return scheduler
    scheduler = copy.deepcopy(scheduler)
    scheduler.register_to_config(**changes)
    return scheduler


def fitting_scheduler(scheduler: Any, *, restarts: bool) -> tuple[Any, list[str]]:
    """Give the scheduler that a run can use: the given one, or the nearest that does what the run needs.

    Args:
        scheduler: A scheduler that `check_scheduler` accepts; never changed.
        restarts: Whether the run begins inside the trajectory, or changes the sample by a lot on its way.

    Returns:
        The scheduler, and a note if it is another one.
    """
    if type(scheduler).__name__ == _SDE:
        replacement, note = _multistep_sde(scheduler.config)
        return replacement, [note]
    if restarts and hasattr(scheduler, "prk_timesteps"):
        note = (
            f"{type(scheduler).__name__} cannot begin inside its trajectory, which this run needs; DDIMScheduler with "
            "the same betas took its place."
        )
        # What PNDM's configuration leaves to its defaults is PNDM's, too (`set_alpha_to_one` differs).
        return repaired(DDIMScheduler.from_config({**scheduler.config, "_use_default_values": []})), [note]
    return scheduler, []


def _multistep_sde(config: Mapping[str, Any]) -> tuple[Any, str]:
    """What takes the place of DPMSolverSDEScheduler, and the note that says so."""
    settings = {**config, "algorithm_type": "sde-dpmsolver++"}
    note = f"{_SDE} draws noise that no generator can repeat; DPMSolverMultistepScheduler (SDE) took its place."
    return DPMSolverMultistepScheduler.from_config(settings), note


def _check_kind(name: str) -> None:
    if name not in (*_FROM_BETAS, *_EDM):
        is_one = name.endswith("Scheduler") and hasattr(diffusers, name)
        reason = "cannot sample a Stable Diffusion base" if is_one else "is not a scheduler of diffusers"
        raise ValueError(f"`scheduler`={name!r} {reason}; use for instance 'DDIMScheduler'.")


def _check_prediction(name: str, config: Mapping[str, Any]) -> None:
    prediction, variance = config.get("prediction_type", "epsilon"), str(config.get("variance_type"))
    if variance.startswith("learned"):
        raise ValueError(
            f"`variance_type`={variance!r} of {name} must be a fixed one: Stable Diffusion's UNets predict no "
            "variances, as DeepFloyd's do. Use the scheduler of the base."
        )
    if prediction == "sample" and name in _NO_SAMPLES:
        raise ValueError(f"`scheduler`={name!r} does not know a base that predicts samples; use 'DDIMScheduler'.")
    if config.get("use_flow_sigmas") or prediction not in _PREDICTIONS:
        kind = "flow matching" if prediction in _PREDICTIONS else repr(prediction)
        raise ValueError(
            f"`scheduler`={name!r} is set to {kind}; its prediction must be one of {', '.join(_PREDICTIONS)}. Use a "
            "Stable Diffusion base."
        )
