"""Scenes of the world: one saturated object over a two-part, unsaturated background, as plain numbers.

A scene holds no pixels. `data.world.render` draws it at any resolution, `data.world.reader` reads it back.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHAPES = ("disc", "square", "triangle", "star", "ring", "cross")
HUES = ("red", "orange", "lime", "green", "cyan", "blue", "violet", "magenta")  # 45 degrees apart, from 0
TEXTURES = ("solid", "stripes", "checker")
BACKGROUNDS = ("sand", "meadow", "mint", "sky", "lavender", "rose")  # 60 degrees apart, from 30

ATTRIBUTES = {"shape": SHAPES, "hue": HUES, "texture": TEXTURES, "background": BACKGROUNDS}
LAYOUT = ("center_y", "center_x", "radius")

HUE_STEP = 360 / len(HUES)
BACKGROUND_STEP = 360 / len(BACKGROUNDS)
BACKGROUND_OFFSET = 30.0  # degrees; keeps background hues off the red wrap-around

RADIUS_RANGE = (0.19, 0.28)
CENTER_X_RANGE = (0.36, 0.64)
CENTER_Y_RANGE = (0.40, 0.64)
NUM_WAVES = 6  # sinusoid products that make the background's grain
_MOVES = 2_000_003  # added to the seed: places that scenes are moved to come from another stream


@dataclass(frozen=True)
class Scenes:
    """A batch of N scenes; lengths and places are fractions of the frame, angles are radians unless named otherwise.

    Attributes:
        shape: (N,) index into `SHAPES`.
        hue: (N,) index into `HUES`.
        texture: (N,) index into `TEXTURES`.
        background: (N,) index into `BACKGROUNDS`.
        center_y: (N,) object centre from the top, in `CENTER_Y_RANGE`.
        center_x: (N,) object centre from the left, in `CENTER_X_RANGE`.
        radius: (N,) object radius, in `RADIUS_RANGE`.
        rotation: (N,) in [-0.35, 0.35].
        hue_degrees: (N,) the object's exact hue, within 7 degrees of its class.
        saturation: (N,) HSV saturation of the object, in [0.85, 1].
        value: (N,) HSV value of the object, in [0.85, 1].
        texture_phase: (N, 2) phase of the pattern along the object's two axes.
        background_degrees: (N,) exact background hue, within 10 degrees of its class.
        background_saturation: (N,) HSV saturation of the sky, in [0.16, 0.24]; the ground has 1.35 times that.
        horizon: (N,) mean height of the horizon from the top, in [0.45, 0.75].
        horizon_wave: (N, 4) amplitude, cycles per frame, two phases of the horizon's waviness.
        sky_value: (N,) HSV value of the sky at the top.
        ground_value: (N,) HSV value of the ground at the bottom.
        grain_frequency: (N, NUM_WAVES, 2) cycles per frame down and across.
        grain_phase: (N, NUM_WAVES, 2) phases.
    """

    shape: Tensor
    hue: Tensor
    texture: Tensor
    background: Tensor
    center_y: Tensor
    center_x: Tensor
    radius: Tensor
    rotation: Tensor
    hue_degrees: Tensor
    saturation: Tensor
    value: Tensor
    texture_phase: Tensor
    background_degrees: Tensor
    background_saturation: Tensor
    horizon: Tensor
    horizon_wave: Tensor
    sky_value: Tensor
    ground_value: Tensor
    grain_frequency: Tensor
    grain_phase: Tensor

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: slice | Tensor | int) -> "Scenes":
        """Select scenes; an integer gives a batch of one."""
        if isinstance(index, int):
            index = slice(index, index + 1 or None)
        return Scenes(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def split(self, size: int) -> Iterator["Scenes"]:
        """Yield batches of at most `size` scenes, in order."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def describe(self, index: int) -> dict[str, Any]:
        """Name the attributes of one scene, ready for JSON."""
        named = {name: names[int(getattr(self, name)[index])] for name, names in ATTRIBUTES.items()}
        return named | {name: round(float(getattr(self, name)[index]), 5) for name in LAYOUT}


def sample_scenes(count: int, seed: int, start: int = 0) -> Scenes:
    """Draw scenes; scene `start + i` is a pure function of `(seed, start + i)`.

    Args:
        count: How many scenes.
        seed: Seed of the stream.
        start: Number of the first scene.

    Raises:
        ValueError: `count` or `start` is negative.
    """
    if count < 0 or start < 0:
        raise ValueError(f"`count`={count} and `start`={start} must not be negative.")
    draws = uniform(seed, np.arange(start, start + count, dtype=np.int64), 23 + 4 * NUM_WAVES)
    column = iter(range(draws.shape[1]))

    def between(low: float, high: float) -> Tensor:
        return torch.from_numpy(low + (high - low) * draws[:, next(column)]).float()

    def one_of(names: tuple[str, ...]) -> Tensor:
        return torch.from_numpy((draws[:, next(column)] * len(names)).astype(np.int64))

    def rows(count: int, low: float, high: float) -> Tensor:
        return torch.stack([between(low, high) for _ in range(count)], dim=1)

    shape, hue, texture, background = (one_of(names) for names in (SHAPES, HUES, TEXTURES, BACKGROUNDS))
    turn = 2 * np.pi
    return Scenes(
        shape=shape,
        hue=hue,
        texture=texture,
        background=background,
        center_y=between(*CENTER_Y_RANGE),
        center_x=between(*CENTER_X_RANGE),
        radius=between(*RADIUS_RANGE),
        rotation=between(-0.35, 0.35),
        hue_degrees=hue * HUE_STEP + between(-7, 7),
        saturation=between(0.85, 1),
        value=between(0.85, 1),
        texture_phase=rows(2, 0, turn),
        background_degrees=background * BACKGROUND_STEP + BACKGROUND_OFFSET + between(-10, 10),
        background_saturation=between(0.16, 0.24),
        horizon=between(0.45, 0.75),
        horizon_wave=torch.stack([between(0.005, 0.02), between(0.6, 1.8), between(0, turn), between(0, turn)], dim=1),
        sky_value=between(0.72, 0.9),
        ground_value=between(0.36, 0.5),
        grain_frequency=rows(2 * NUM_WAVES, 2, 12).view(count, NUM_WAVES, 2),
        grain_phase=rows(2 * NUM_WAVES, 0, turn).view(count, NUM_WAVES, 2),
    )


def joined(parts: Sequence[Scenes]) -> Scenes:
    """Several batches of scenes as one."""
    return Scenes(**{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Scenes)})


def sample_windows(count: int, seed: int, max_zoom: float = 4.0) -> Tensor:
    """Draw square windows on frames; window i is a pure function of `(seed, i)`.

    Args:
        count: How many.
        seed: Seed of the stream.
        max_zoom: The smallest window has one part in `max_zoom` of the frame's side; sides are log-uniform.

    Returns:
        (count, 3) float32: top, left and side in fractions of the frame; every window lies within it.
    """
    draws = torch.from_numpy(uniform(seed, np.arange(count, dtype=np.int64), 3))
    side = max_zoom ** -draws[:, 2:]
    return torch.cat([draws[:, :2] * (1 - side), side], dim=1).float()


def seen_through(scenes: Scenes, windows: Tensor) -> Scenes:
    """The same scenes with the object's place and size in fractions of a window: the centre may lie outside [0, 1].

    Only the layout is of the window. `data.world.render` takes the scenes as they were, and the windows.

    Args:
        scenes: N scenes.
        windows: (N, 3) top, left and side.
    """
    top, left, side = windows.unbind(1)
    place = {"center_y": (scenes.center_y - top) / side, "center_x": (scenes.center_x - left) / side}
    return replace(scenes, **place, radius=scenes.radius / side)


def move_scenes(scenes: Scenes, seed: int, start: int = 0) -> Scenes:
    """Draw another centre and radius for each scene; everything else stays, the background too.

    Args:
        scenes: Scenes `start` and following of a seed.
        seed: Seed of the scenes.
        start: Number of the first scene.
    """
    places = sample_scenes(len(scenes), seed + _MOVES, start)
    return replace(scenes, **{name: getattr(places, name) for name in LAYOUT})


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def uniform(seed: int, indices: NDArray[np.int64], num_fields: int) -> NDArray[np.float64]:
    """Draw `num_fields` uniform numbers for every index.

    Args:
        seed: Any integer; different seeds give unrelated numbers.
        indices: (N,) non-negative sample numbers.
        num_fields: How many numbers each index needs.

    Returns:
        (N, num_fields) float64 in [0, 1).
    """
    with np.errstate(over="ignore"):  # wrap-around multiplication is the algorithm
        base = _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64) + _GOLDEN)
        rows = _mix(base + (indices.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
        columns = (np.arange(num_fields, dtype=np.uint64) + np.uint64(1)) * _GOLDEN
        bits = _mix(rows[:, None] + _mix(columns)[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
