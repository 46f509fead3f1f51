"""Which layers ScaleCrafter dilates, how far and for how long: the published settings, and a rule for the rest.

Published step numbers (of 50) are written as fractions of the trajectory. All networks here halve the resolution from
one level to the next; `level.2` is the third, on the way down and up.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from seecoder.checks import Rule, either, instance, number, some_of
from seecoder.sampling.methods.unet_levels import num_levels
from seecoder.sampling.views import Size

Factors = Mapping[str, float | tuple[float, float]]

_FACTOR = either(number(1.0), some_of(number(1.0), "a pair", minimum=2, maximum=2))
_PATTERN = instance(str)


def _is_factors(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    return all(_PATTERN.accepts(pattern) and _FACTOR.accepts(factor) for pattern, factor in value.items())


FACTORS = Rule(_is_factors, "a mapping of patterns to factors from 1 up, or pairs of them, such as {'level.1': 2.0}")
PATTERNS = Rule(
    either(_PATTERN, some_of(_PATTERN, "")).accepts,
    "a pattern or a list of patterns, such as 'level.1' or ('mid', 'up.0')",
)


@dataclass(frozen=True)
class Settings:
    """Which layers are dilated how far, and for how long.

    Attributes:
        dilation: Pattern -> factor, or (rows, columns).
        dilate_tau: Fraction of the trajectory, from its noisy end, in which layers are dilated.
        progressive: Whether the factors fall towards 2 over those steps.
        damping: Pattern -> factor of the weaker network that noise-damped guidance stands on.
        damp_tau: Fraction of the trajectory with noise-damped guidance.
    """

    dilation: Factors
    dilate_tau: float
    progressive: bool = False
    damping: Factors = field(default_factory=dict)
    damp_tau: float = 0.0


def _levels(factors: Mapping[int, float]) -> Factors:
    return {f"level.{level}": factor for level, factor in factors.items()}


_TWICE = {1: 2.0, 2: 2.0, 3: 2.0}
_TWICE_AND_HALF = {1: 2.5, 2: 2.5, 3: 2.5}
_FOUR_TIMES = _levels({1: 2.0, 2: 3.0, 3: 4.0})
_DAMPED = _levels({2: 3.0, 3: 4.0})
_SD21_DAMPED: Factors = {
    "down.2": 3.0, "down.2.sampler": 4.0, "down.3": 4.0, "mid": 4.0, "up.0": 4.0, "up.1": 4.0, "up.2": 3.0
}  # fmt: skip

# Published for square targets. The released SDXL files name `down_blocks.3`, which SDXL does not have; what they mean,
# the deepest encoder level, is `level.2` here.
PUBLISHED: Mapping[tuple[str, float], Settings] = {
    ("sd15", 2.0): Settings(_levels(_TWICE), 0.6),
    ("sd21", 2.0): Settings(_levels(_TWICE), 0.4),
    ("sd15", 2.5): Settings(_levels(_TWICE_AND_HALF), 0.7),
    ("sd21", 2.5): Settings(_levels(_TWICE_AND_HALF), 0.6),
    ("sd15", 4.0): Settings(_FOUR_TIMES, 0.7, True, _DAMPED, 0.7),
    ("sd21", 4.0): Settings({**_SD21_DAMPED, "up.3": 2.0}, 0.74, True, _SD21_DAMPED, 0.74),
    ("sdxl", 2.0): Settings({"level.2": 2.0}, 0.6),
    ("sdxl", 2.5): Settings({"level.2": 2.5}, 0.6),
    ("sdxl", 4.0): Settings({"level.2": 4.0, "up.1": 3.0, "up.2": 2.0}, 0.7, True, {"mid": 2.0, "up.0": 2.0}, 0.7),
}

# Published for targets with twice as many pixels on one axis as on the other, where they differ from the square ones.
PUBLISHED_TWO_TO_ONE: Mapping[tuple[str, float], Settings] = {
    ("sd21", 4.0): Settings(_FOUR_TIMES, 0.74, True),
    ("sdxl", 4.0): replace(
        PUBLISHED["sdxl", 4.0], dilation={"down.2": 3.0, "mid": 4.0, "up.0": 4.0, "up.1": 3.0, "up.2": 2.0}
    ),
}

_SHAPES = {
    ((320, 640, 1280, 1280), 768): "sd15",
    ((320, 640, 1280, 1280), 1024): "sd21",
    ((320, 640, 1280), 2048): "sdxl",
}
_TOLERANCE = 0.1
_WIDE = 1.5  # from this ratio of the axes on, settings for 2:1 are nearer than those for squares


def published_network(unet: Any) -> str | None:
    """Which network with published settings a UNet is, by its shape: "sd15", "sd21", "sdxl", or None."""
    config = getattr(unet, "config", {})
    channels, width = config.get("block_out_channels"), config.get("cross_attention_dim")
    return _SHAPES.get((tuple(channels), width)) if channels and isinstance(width, int) else None


def derived_settings(unet: Any, native_size: Size, size: Size) -> Settings:
    """Settings for any UNet and any size.

    For the published networks, where the larger of the two axes is at a published scale, those settings, for squares
    or for 2:1, whichever is nearer; else `rule`. Either way no axis is dilated further than its own scale, so that a
    2:1 picture is dilated 2:1.
    """
    scales = (size[0] / native_size[0], size[1] / native_size[1])
    scale = max(scales)
    name = published_network(unet)
    known = {**PUBLISHED, **PUBLISHED_TWO_TO_ONE} if scale >= _WIDE * min(scales) else PUBLISHED
    found = next((s for (owner, at), s in known.items() if owner == name and abs(at / scale - 1.0) <= _TOLERANCE), None)
    settings = rule(num_levels(unet), scale, is_published=name is not None) if found is None else found
    return replace(settings, dilation=capped(settings.dilation, scales), damping=capped(settings.damping, scales))


def rule(levels: int, scale: float, *, is_published: bool = False) -> Settings:
    """The rule for networks and scales that nobody has published settings for.

    The first level is never dilated: it draws what is local, and dilating it gives noise. The deepest level and the
    middle, which decide what the picture is of, are dilated by the whole scale; the levels between by at most one more
    than their depth: min(scale, 1 + level). This agrees with the published factors at 2x and 4x for four levels.

    Networks like Stable Diffusion are dilated for 0.6 of the trajectory, from 3x on progressively and with damping for
    0.7 of it, as published. Others are dilated throughout: with the first level left plain, small networks gain
    nothing from returning to the plain one and repeat objects when they do.
    """
    factors = {level: min(scale, 1.0 + level) for level in range(1, levels)}
    factors[levels - 1] = scale
    if not is_published:
        return Settings(_levels(factors), 1.0)
    if scale < 3.0:
        return Settings(_levels(factors), 0.6)
    inner = {level: factor for level, factor in factors.items() if level >= levels - 2}
    return Settings(_levels(factors), 0.7, True, _levels(inner), 0.7)


def capped(factors: Factors, scales: tuple[float, float]) -> Factors:
    """Factors per axis, none above the scale of its axis and none below 1."""
    limits = tuple(max(1.0, scale) for scale in scales)
    return {
        pattern: (min(rows, limits[0]), min(columns, limits[1]))
        for pattern, (rows, columns) in per_axis(factors).items()
    }


def per_axis(factors: Factors) -> dict[str, tuple[float, float]]:
    """The same factors with (rows, columns) spelled out."""
    return {
        pattern: (float(f), float(f)) if isinstance(f, int | float) else (float(f[0]), float(f[1]))
        for pattern, f in factors.items()
    }
