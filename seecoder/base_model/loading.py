"""Read the parts of a diffusers folder strictly: safetensors only, and every weight has to be there and to fit.

diffusers itself goes on when weights are missing (they stay uninitialised), and falls back to pickles when there is no
safetensors file; neither happens here.
"""

import os
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
from diffusers import ConfigMixin, ModelMixin, SchedulerMixin

from seecoder.weights.safetensors_files import WeightsError

__all__ = ["load_config", "load_model", "load_part", "load_scheduler"]

Model = TypeVar("Model", bound=ModelMixin)

# Only these classes are ever built from a name in a file.
_VAES = ("AutoencoderKL", "AutoencoderTiny", "AsymmetricAutoencoderKL", "VQModel")


class _ModelConfig(ConfigMixin):
    config_name = "config.json"


class _SchedulerConfig(ConfigMixin):
    config_name = "scheduler_config.json"


class _PipelineConfig(ConfigMixin):
    config_name = "model_index.json"


def load_config(base: str | os.PathLike, part: str, *, at_top: bool = False, **hub: Any) -> dict[str, Any]:
    """Read the configuration of one part of a diffusers folder or repository.

    Args:
        base: a folder, or a repository on the Hub.
        part: `unet`, `vae`, `scheduler`, `controlnet`, or `pipeline` for the index.
        at_top: the part is `base` itself, not a sub-folder of it; the index always is.
        hub: `revision`, `token`, `cache_dir`, `local_files_only`.

    Returns:
        The configuration as a dictionary; its class is under `_class_name`.

    Raises:
        FileNotFoundError: no such folder, repository or part.
    """
    reader = {"pipeline": _PipelineConfig, "scheduler": _SchedulerConfig}.get(part, _ModelConfig)
    folder = None if at_top or part == "pipeline" else part
    if Path(base).is_dir() and not (Path(base) / (folder or "")).is_dir():
        raise FileNotFoundError(
            f"`{base}` has no `{folder}/`; expected a diffusers folder with unet/, vae/ and scheduler/."
        )
    if not Path(base).is_dir() and not _may_be_repository(base):
        raise FileNotFoundError(f"`{base}` is neither a folder nor the name of a repository.")
    try:
        config = reader.load_config(os.fspath(base), subfolder=folder, **hub)
    except (OSError, ValueError) as error:
        name = f"{folder}/{reader.config_name}" if folder else reader.config_name
        raise FileNotFoundError(f"`{base}` has no readable {name}: {first_line(error)}") from error
    return dict(config if isinstance(config, dict) else config[0])


def load_model(
    cls: type[Model],
    base: str | os.PathLike,
    part: str | None,
    dtype: torch.dtype | None = None,
    **hub: Any,
) -> Model:
    """Load a model, or say exactly what is wrong with its weights.

    Args:
        cls: the diffusers class.
        base: a folder, or a repository on the Hub.
        part: the sub-folder, or None for `base` itself.
        dtype: what to load the weights as; None for float32.
        hub: `variant`, `revision`, `token`, `cache_dir`, `local_files_only`.

    Returns:
        The model in evaluation mode.

    Raises:
        FileNotFoundError: no configuration, or no safetensors file.
        WeightsError: weights are missing, left over, mis-shaped, or the file is damaged.
    """
    source = f"{base}/{part}" if part else os.fspath(base)
    try:
        loaded: Any = cls.from_pretrained(
            os.fspath(base),
            subfolder=part,
            dtype=dtype or torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            **hub,
        )
        model, report = loaded
    except OSError as error:
        raise FileNotFoundError(f"`{source}`: {first_line(error)} Only safetensors files are read.") from error
    except (ValueError, RuntimeError, KeyError) as error:
        raise WeightsError(f"`{source}` does not fit {cls.__name__}: {first_line(error)}") from error
    for kind, meaning in (
        ("missing", "are missing from"),
        ("unexpected", "are unknown in"),
        ("mismatched", "do not fit in"),
    ):
        keys = sorted(str(key) for key in report[f"{kind}_keys"])
        if keys:
            shown = ", ".join(keys[:3])
            raise WeightsError(f"{len(keys)} weights {meaning} `{source}` for {cls.__name__} (first: {shown}).")
    return model.eval()


def load_scheduler(base: str | os.PathLike, **hub: Any) -> Any:
    """Load the scheduler that a base was made for.

    Args:
        base: a folder, or a repository on the Hub.
        hub: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        FileNotFoundError: no `scheduler/`.
        ValueError: its class is not a scheduler of diffusers.
    """
    config = load_config(base, "scheduler", **hub)
    return scheduler_class(str(config.get("_class_name"))).from_config(config)


def scheduler_class(name: str) -> Any:
    """Find a scheduler of diffusers by the name of its class.

    Args:
        name: such as "DDIMScheduler"; nothing outside diffusers' schedulers is ever looked up.

    Raises:
        ValueError: there is no such scheduler.
    """
    found = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise ValueError(f"`scheduler`={name!r} is not a scheduler of diffusers; use for instance 'DDIMScheduler'.")
    return found


def load_part(
    base: str | os.PathLike, part: str, dtype: torch.dtype | None = None, *, at_top: bool = False, **hub: Any
) -> Any:
    """Load `unet`, `vae`, `scheduler` or `controlnet` of a folder, each strictly, by the class its configuration names.

    Args:
        base: a folder, or a repository on the Hub.
        part: the name of the sub-folder.
        dtype: what to load weights as; None for float32.
        at_top: the part is `base` itself, not a sub-folder of it.
        hub: `variant`, `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        FileNotFoundError: the part, or its weights, are not there.
        ValueError: the configuration names a class that does not belong there.
        WeightsError: the weights do not fit.
    """
    variant = hub.pop("variant", None)
    if part == "scheduler":
        return load_scheduler(base, **hub)
    name = str(load_config(base, part, at_top=at_top, **hub).get("_class_name"))
    accepted = {"unet": ("UNet2DConditionModel",), "controlnet": ("ControlNetModel",), "vae": _VAES}[part]
    if name not in accepted:
        raise ValueError(f"`{base}/{part}` holds a {name}; expected {' or '.join(accepted)}.")
    return load_model(getattr(diffusers, name), base, None if at_top else part, dtype, variant=variant, **hub)


def _may_be_repository(name: str | os.PathLike) -> bool:
    text = os.fspath(name)
    return isinstance(name, str) and text.count("/") <= 1 and not text.startswith((".", "/", "~"))


def first_line(error: BaseException) -> str:
    """Shorten an error of a library to its first line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]
