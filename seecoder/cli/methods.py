"""Sampling methods by name, with their settings from the command line."""

import dataclasses
from collections.abc import Sequence
from typing import Any

__all__ = ["available_methods", "build_methods"]


def available_methods() -> dict[str, type]:
    """Give every method of `seecoder.sampling` under its name in lower case."""
    from seecoder import sampling

    found = {name.lower(): getattr(sampling, name) for name in sampling.__all__}
    return {n: entry for n, entry in found.items() if isinstance(entry, type) and issubclass(entry, sampling.Method)}


def build_methods(names: str | None, options: Sequence[tuple[str, Any]] = ()) -> list[Any] | None:
    """Make methods of `--method` and `--method-option`.

    Args:
        names: names of methods, separated by commas, in any case; None for plain sampling.
        options: pairs of a setting, or NAME.setting, and its value.

    Returns:
        The methods, or None for plain sampling.

    Raises:
        ValueError: an unknown method or setting, a value that the setting does not accept, or a setting without a
            method.
    """
    if not names:
        if options:
            raise ValueError(f"`--method-option` {options[0][0]} has no effect without `--method`.")
        return None
    known = available_methods()
    chosen = [name.strip().lower() for name in names.split(",")]
    for name in chosen:
        if name not in known:
            raise ValueError(f"`--method` {name!r} is unknown; choose from {', '.join(sorted(known))}.")
    settings: dict[str, dict[str, Any]] = {name: {} for name in chosen}
    for key, value in options:
        name, field = _owner(key, chosen, known)
        settings[name][field] = value
    try:
        return [known[name](**settings[name]) for name in chosen]
    except (TypeError, ValueError) as error:
        raise ValueError(f"`--method-option`: {error}") from error


def _owner(key: str, chosen: Sequence[str], known: dict[str, type]) -> tuple[str, str]:
    """Find the one method that a setting belongs to."""
    name, dot, field = key.rpartition(".")
    found = [name.lower()] if dot else [entry for entry in chosen if field in _settings(known[entry])]
    # The windows of both are MultiDiffusion's.
    owners = ["multidiffusion"] if set(found) == {"multidiffusion", "syncdiffusion"} else found
    if len(owners) > 1:
        raise ValueError(
            f"`--method-option` {field} is a setting of {' and '.join(owners)}; write {owners[0]}.{field}=..."
        )
    if not owners or owners[0] not in chosen or field not in _settings(known[owners[0]]):
        there = "; ".join(f"{entry}: {', '.join(_settings(known[entry]))}" for entry in chosen)
        raise ValueError(f"`--method-option` {key} is unknown. Settings are {there}.")
    return owners[0], field


def _settings(method: type) -> list[str]:
    """What may be set: no functions, and no regions, which `--region` gives."""
    names = [entry.name for entry in dataclasses.fields(method)] if dataclasses.is_dataclass(method) else []
    return [name for name in names if name not in ("loss", "regions")]
