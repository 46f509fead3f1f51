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

Model = TypeVar("Model", bound=ModelMixin)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Only these classes are ever built from a name in a file.
_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "controlnet": ("ControlNetModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny", "AsymmetricAutoencoderKL", "VQModel"),
}
_CONFIG_NAMES = {"pipeline": "model_index.json", "scheduler": "scheduler_config.json"}
_PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")


def load_config(base: str | os.PathLike, part: str, *, at_top: bool = False, **hub: Any) -> dict[str, Any]:
    """Read the configuration of one part of a diffusers folder or repository.

    Args:
        base: A folder, or a repository on the Hub.
        part: `unet`, `vae`, `scheduler`, `controlnet`, or `pipeline` for the index.
        at_top: The part is `base` itself, not a sub-folder of it; the index always is.
        hub: `revision`, `token`, `cache_dir`, `local_files_only`.

    Returns:
        The configuration as a dictionary; its class is under `_class_name`.

    Raises:
        FileNotFoundError: There is no such folder, repository or part.
    """
    name = _CONFIG_NAMES.get(part, "config.json")
    folder = None if at_top or part == "pipeline" else part
    if Path(base).is_dir() and not (Path(base) / (folder or "")).is_dir():
        raise FileNotFoundError(
            f"`base`={base} has no `{folder}/`; give a diffusers folder with unet/, vae/ and scheduler/."
        )
    may_be_repository = isinstance(base, str) and base.count("/") <= 1 and not base.startswith((".", "/", "~"))
    if not Path(base).is_dir() and not may_be_repository:
        raise FileNotFoundError(f"`base`={base} does not exist; give a folder, or the name of a repository.")
    reader: Any = type("_Reader", (ConfigMixin,), {"config_name": name})
    try:
        return dict(reader.load_config(os.fspath(base), subfolder=folder, **hub))
    except (OSError, ValueError) as error:
        where = f"{folder}/{name}" if folder else name
        raise FileNotFoundError(f"`base`={base} has no readable {where}; {_first_line(error)}") from error


def load_model(
    cls: type[Model], base: str | os.PathLike, part: str | None, dtype: torch.dtype | None = None, **hub: Any
) -> Model:
    """Load a model, or say exactly what is wrong with its weights.

    Args:
        cls: The class, one of diffusers' or made like these.
        base: A folder, or a repository on the Hub.
        part: The sub-folder, or None for `base` itself.
        dtype: What to load the weights as; None for float32.
        hub: `variant`, `revision`, `token`, `cache_dir`, `local_files_only`.

    Returns:
        The model in evaluation mode.

    Raises:
        FileNotFoundError: There is no configuration, or no safetensors file.
        WeightsError: Weights are missing, left over, mis-shaped, or the file is damaged.
    """
    check_pickles(base, part)
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
        raise FileNotFoundError(f"`{source}`: {_first_line(error)} Only safetensors files are read.") from error
    except (ValueError, RuntimeError, KeyError) as error:
        raise WeightsError(f"`{source}` does not fit {cls.__name__}: {_first_line(error)}") from error
    for kind, meaning in (
        ("missing", "are missing from"),
        ("unexpected", "are unknown in"),
        ("mismatched", "do not fit in"),
    ):
        keys = sorted(str(key) for key in report[f"{kind}_keys"])
        if keys:
            first = ", ".join(keys[:3])
            raise WeightsError(f"{len(keys)} weights {meaning} `{source}` for {cls.__name__} (first: {first}).")
    return model.eval()


def check_pickles(base: str | os.PathLike, part: str | None) -> None:
    """Refuse a folder whose weights are pickles only; nothing is read, so that a plan can ask.

    Args:
        base: A folder; of a repository nothing is known before it is read.
        part: The sub-folder, or None for `base` itself.

    Raises:
        FileNotFoundError: There are pickles and no safetensors file.
    """
    folder = Path(base) / (part or "")
    pickles = [path.name for pattern in _PICKLES for path in sorted(folder.glob(pattern))]
    if pickles and not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"`{folder}` has no safetensors file, and {pickles[0]} is a pickle. Only safetensors files are read; save "
            "the weights as such with diffusers."
        )


def scheduler_class(name: str) -> Any:
    """Find a scheduler of diffusers by the name of its class.

    Args:
        name: Such as "DDIMScheduler"; nothing outside diffusers' schedulers is ever looked up.

    Raises:
        ValueError: There is no such scheduler.
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
        base: A folder, or a repository on the Hub.
        part: The name of the sub-folder.
        dtype: What to load weights as; None for float32.
        at_top: The part is `base` itself, not a sub-folder of it.
        hub: `variant`, `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        FileNotFoundError: The part, or its weights, are not there.
        ValueError: The configuration names a class that does not belong there.
        WeightsError: The weights do not fit.
    """
    variant = hub.pop("variant", None)
    config = load_config(base, part, at_top=at_top, **hub)
    name = str(config.get("_class_name"))
    if part == "scheduler":
        return scheduler_class(name).from_config(config)
    if name not in _CLASSES[part]:
        raise ValueError(f"`{base}/{part}` holds a {name}; expected {' or '.join(_CLASSES[part])}.")
    return load_model(getattr(diffusers, name), base, None if at_top else part, dtype, variant=variant, **hub)


def load_frozen(base: str | os.PathLike, part: str, dtype: str, *, at_top: bool = False) -> Any:
    """Load a part that training needs and never changes, in the memory layout in which convolutions are fastest.

    Args:
        base: A folder, or a repository on the Hub.
        part: `unet` or `vae`.
        dtype: A key of `DTYPES`.
        at_top: The part is `base` itself, not a sub-folder of it.

    Returns:
        The network, which asks for no gradients; on the CPU.

    Raises:
        FileNotFoundError: The part, or its weights, are not there.
        ValueError: The configuration names another class, or an autoencoder without the posterior that training needs.
        WeightsError: The weights do not fit.
    """
    network = load_part(base, part, DTYPES[dtype], at_top=at_top)
    if part == "vae" and not issubclass(type(network), diffusers.AutoencoderKL):
        raise ValueError(f"`{base}/{part}` holds a {type(network).__name__}; training needs an AutoencoderKL.")
    return network.requires_grad_(False).to(memory_format=torch.channels_last)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]
