"""What to sample with above the native size, by name; and what that costs. Needs no torch, so that it is told at once.

The presets are what the project's tables rank first (`data/world/highres/README.md`). All of them are plain sampling
where a picture is not larger than what the network knows. All sizes are (height, width), in pixels or in cells.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

PRESETS = ("auto", "fast", "balanced", "best")

ABOVE_NATIVE = 1.05  # from this scale on a view is larger than what the network knows
_WIDE = 1.5  # times the native aspect ratio: from here on a native-sized stage is too flat for the object
_FAR = 2.5  # native sides: from here on only a trajectory that begins at the native size keeps one object
_SWITCHES = (0.85, 0.95)
_LIVE = 0.88  # of the steps of DemoFusion's later phases; the others have no influence on the result

Size = tuple[int, int]


def preset_settings(preset: str, size: Size, native_size: Size, steps: int) -> tuple[str, dict[str, Any]]:
    """The methods of a preset.

    Args:
        preset: One of `PRESETS`.
        size: Of the picture.
        native_size: Of the network's training.
        steps: Steps of a whole trajectory.

    Returns:
        Names with commas, empty for plain sampling, and their settings.
    """
    scale = scale_over(size, native_size)
    if scale <= ABOVE_NATIVE:
        return "", {}
    aspect = (size[0] / size[1]) / (native_size[0] / native_size[1])
    is_wide = max(aspect, 1 / aspect) > _WIDE
    if preset == "best" and (is_wide or scale <= _FAR):
        return "scalecrafter,demofusion", {"use_windows": False}
    if is_wide or (preset == "balanced" and scale <= _FAR):
        return "scalecrafter", {}
    # Each stage needs a step at least, however few there are.
    count = num_switches(scale)
    switches = tuple(min(at, 1 - (count - place) / steps) for place, at in enumerate(_SWITCHES[:count]))
    return ("scalecrafter,rectifiedhr", {"switch_at": switches}) if switches[0] > 0 else ("scalecrafter", {})


def settled_preset(
    preset: str, size: Size, native_size: Size, steps: int, guidance_scale: float
) -> tuple[str, dict[str, Any], str]:
    """The methods of a preset for a run, and what to say of them.

    Args:
        preset: One of `PRESETS`.
        size: Of the picture.
        native_size: Of the network's training.
        steps: Steps of a whole trajectory.
        guidance_scale: Of the run; 1 halves the cost.

    Returns:
        Names with commas and settings, as `preset_settings` gives them; and what they are and cost, in one line, empty
        for plain sampling.
    """
    names, settings = preset_settings(preset, size, native_size, steps)
    if not names:
        return names, settings, ""
    chosen = " ".join([names, *(f"{name}={value}" for name, value in settings.items())])
    given: dict[str, Any] = {"steps": steps, "branches": 1 if guidance_scale <= 1 else 2}
    windows = count_windows(names, size, native_size, settings=settings, **given)
    plain = count_windows("", size, native_size, **given)
    about = f"{preset}: {chosen}, about {windows:,} native-sized windows a picture (plain sampling: {plain:,})"
    return names, settings, about


def count_windows(
    names: str, size: Size, native_size: Size, *, steps: int, branches: int = 2, settings: Mapping[str, Any] = {}
) -> int:
    """About how often the network sees a native-sized window for one picture; larger views count by their area.

    Args:
        names: Methods with commas, empty for plain sampling.
        size: Of the picture.
        native_size: Of the network's training.
        steps: Steps of a whole trajectory.
        branches: 2 with guidance, 1 without.
        settings: What is set of `switch_at`, `use_windows` and `windows_see_context`; others are not looked at.
    """
    scale = max(1.0, scale_over(size, native_size))
    area = scale**2
    if "rectifiedhr" in names and scale > 1.0:
        count = num_switches(scale)
        ends = [0, *(round(at * steps) for at in settings.get("switch_at", (0.8, 0.9))[:count]), steps]
        parts = [(end - start) * area ** (place / count) for place, (start, end) in enumerate(pairwise(ends))]
        return round(branches * sum(parts))
    if "demofusion" in names:
        phases, live = math.ceil(scale - 1e-6), round(_LIVE * steps)
        local = 0 if not settings.get("use_windows", True) else branches
        local = local if settings.get("windows_see_context", True) else min(local, 1)
        count = 0.0
        for phase in range(2, phases + 1):
            part = (round(size[0] * phase / phases), round(size[1] * phase / phases))
            count += local * _windows(part, native_size, 2) + branches * scale_over(part, native_size) ** 2
        return round(branches * steps + live * count)
    if "multidiffusion" in names or "syncdiffusion" in names:
        return branches * steps * _windows(size, native_size, 4)
    return round(branches * steps * area)


def scale_over(size: Size, native_size: Size) -> float:
    """How many times larger than native `size` is along one side, by area; 2.0 is four times the cells."""
    return ((size[0] * size[1]) / (native_size[0] * native_size[1])) ** 0.5


def num_switches(scale: float, most: int = 2) -> int:
    """Changes of resolution of RectifiedHR, which at most doubles the sides in each while there are some left."""
    return min(max(1, math.ceil(math.log2(scale) - 0.05)), most)


def _windows(size: Size, native_size: Size, overlap: int) -> int:
    """Native-sized windows over a picture, a fraction of a window apart."""
    rows, columns = (
        max(0, math.ceil((length - side) / (side / overlap) - 1e-6)) + 1
        for length, side in zip(size, native_size, strict=True)
    )
    return rows * columns
