"""Sampling methods by name, with settings as the command line and the web app give them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from seecoder.presets import PRESETS, preset_settings
from seecoder.sampling.methods.demofusion.demofusion import DemoFusion
from seecoder.sampling.methods.hidiffusion.hidiffusion import HiDiffusion
from seecoder.sampling.methods.multidiffusion import MultiDiffusion
from seecoder.sampling.methods.rectifiedhr import RectifiedHR
from seecoder.sampling.methods.scalecrafter.scalecrafter import ScaleCrafter
from seecoder.sampling.methods.syncdiffusion import SyncDiffusion
from seecoder.sampling.recipe import Method
from seecoder.sampling.views import Size

_METHODS = (DemoFusion, HiDiffusion, MultiDiffusion, RectifiedHR, ScaleCrafter, SyncDiffusion)
METHODS: dict[str, type[Method]] = {method.__name__.lower(): method for method in _METHODS}
NAMES = ("plain", *PRESETS, *METHODS)


def build_methods(names: str | None, options: Sequence[tuple[str, Any]] = ()) -> list[Method] | None:
    """Make methods of `--method` and `--method-option`.

    Args:
        names: Names of methods, separated by commas, in any case; None or "plain" for plain sampling.
        options: Pairs of a setting, or NAME.setting, and its value.

    Returns:
        The methods, or None for plain sampling.

    Raises:
        ValueError: An unknown method or setting, a value that the setting does not accept, or a setting without a
            method.
    """
    if not names or names.strip().lower() == "plain":
        if options:
            raise ValueError(f"`--method-option` {options[0][0]} has no effect without `--method`.")
        return None
    chosen = [name.strip().lower() for name in names.split(",")]
    for name in chosen:
        if name not in METHODS:
            raise ValueError(f"`method`={name!r} does not exist; choose from {', '.join(NAMES)}.")
    settings: dict[str, dict[str, Any]] = {name: {} for name in chosen}
    for key, value in options:
        name, field = _owner(key, chosen)
        settings[name][field] = value
    try:
        return [METHODS[name](**settings[name]) for name in chosen]
    except (TypeError, ValueError) as error:
        raise ValueError(f"`--method-option`: {error}") from error


def named_methods(method: Any, size: Size, native_size: Size, steps: int) -> Any:
    """Put methods in the place of names.

    Args:
        method: A name or several with commas, a preset, a list in which names may be, or what is no name.
        size: (height, width) of the result in cells.
        native_size: The same of the network's training.
        steps: Steps of a whole trajectory.

    Returns:
        A list of methods, or what was given if it is no name.

    Raises:
        ValueError: There is no method or preset of that name.
    """
    if isinstance(method, str):
        name = method.strip().lower()
        names, settings = preset_settings(name, size, native_size, steps) if name in PRESETS else (name, {})
        return build_methods(names, list(settings.items())) or []
    if isinstance(method, list | tuple):
        parts = [named_methods(entry, size, native_size, steps) for entry in method]
        return [entry for part in parts for entry in (part if isinstance(part, list) else [part])]
    return method


def _owner(key: str, chosen: Sequence[str]) -> tuple[str, str]:
    """Find the one method that a setting belongs to."""
    name, dot, field = key.rpartition(".")
    found = [name.lower()] if dot else [entry for entry in chosen if field in _settings(METHODS[entry])]
    # The windows of both are MultiDiffusion's.
    owners = ["multidiffusion"] if set(found) == {"multidiffusion", "syncdiffusion"} else found
    if len(owners) > 1:
        raise ValueError(
            f"`--method-option` {field} is a setting of {' and '.join(owners)}; write {owners[0]}.{field}=..."
        )
    if not owners or owners[0] not in chosen or field not in _settings(METHODS[owners[0]]):
        there = "; ".join(f"{entry}: {', '.join(_settings(METHODS[entry]))}" for entry in chosen)
        raise ValueError(f"`--method-option` {key} is unknown. Settings are {there}.")
    return owners[0], field


def _settings(method: type) -> list[str]:
    """What may be set: no regions, which `--region` gives."""
    names = [entry.name for entry in dataclasses.fields(method)] if dataclasses.is_dataclass(method) else []
    return [name for name in names if name != "regions"]
