"""Draw scenes at any resolution: the same scene gives a true picture at 64 and at 4096 pixels, not an upscaled one.

There are two styles of rendering: "shaded", with gradients and grain, and "outlined", with flat colours and a dark line
around the object. They share scenes, as fine-tunes of Stable Diffusion share its prompts.

An outline is a signed distance to a shape in the object's own frame: centre at the origin, radius 1, y down; negative
inside, positive outside, in radii. All shapes stay within 1.13 radii of the centre and cover 1.6 to 3.1 squared radii.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from data.world.scenes import SHAPES, TEXTURES, Scenes

EDGE_PIXELS = 1.2  # width of anti-aliased edges, in pixels of the picture that is drawn
TEXTURE_PERIOD = 0.8  # radii; 10 pixels for the smallest object at 64 pixels, so that a 4x autoencoder keeps it
DARK_TONE = 0.5  # value of the pattern's second tone, relative to the first
SKY_GRAIN, GROUND_GRAIN = 0.012, 0.03
OUTLINE = 0.2  # radii; 2.4 pixels for the smallest object at 64 pixels
INK = 0.1  # value of the outline; the darkest ground has 0.33
Style = Literal["shaded", "outlined"]
_PIXELS_A_CHUNK = 1 << 18  # keeps temporaries in cache: twice as fast as drawing a large batch at once


def render(
    scenes: Scenes,
    height: int,
    width: int | None = None,
    windows: Tensor | None = None,
    style: Style = "shaded",
) -> Tensor:
    """Draw scenes, or a part of each.

    Args:
        scenes: N scenes.
        height: Height of the pictures in pixels, at least 8.
        width: Width in pixels; `height` when not given. The scene keeps its proportions: lengths are fractions of the
            shorter side, and the frame is centred.
        windows: (N, 3) top, left and side of the part to draw, in fractions of the frame; a side of 0.25 is drawn at
            four times the resolution of the whole. The whole frame, (0, 0, 1), when not given.
        style: How they are drawn.

    Returns:
        (N, 3, height, width) float32 in [0, 1].

    Raises:
        ValueError: A side is below 8 pixels.
    """
    width = height if width is None else width
    if min(height, width) < 8:
        raise ValueError(f"`height`={height}, `width`={width}: both must be at least 8 pixels.")
    chunk = max(1, _PIXELS_A_CHUNK // (height * width))
    pictures = torch.empty(len(scenes), 3, height, width)
    for start in range(0, len(scenes), chunk):
        part = scenes[start : start + chunk]
        y, x, edge = _coordinates(height, width, None if windows is None else windows[start : start + chunk])
        distance, color = _object(part, y, x, edge)
        picture = _background(part, y, x, edge, flat=style == "outlined")
        if style == "outlined":
            picture = torch.lerp(picture, torch.tensor(INK), _coverage(distance - OUTLINE, part, edge))
        picture = torch.lerp(picture, color, _coverage(distance, part, edge))
        pictures[start : start + chunk] = picture.clamp_(0, 1)
    return pictures


def segment(scenes: Scenes, side: int, windows: Tensor | None = None) -> Tensor:
    """Say what is where in a square picture: the truth behind `render`, in the same words.

    Args:
        scenes: N scenes.
        side: Height and width in pixels.
        windows: (N, 3) top, left and side of the part that is drawn; the whole frame when not given.

    Returns:
        (N, 3, side, side) float32: the fraction of each pixel that is sky, ground and object; they add up to 1.
    """
    y, x, edge = _coordinates(side, side, windows)
    covered = _coverage(_object(scenes, y, x, edge)[0], scenes, edge)
    ground = _ground(scenes, y, x, edge).unsqueeze(1)
    return torch.cat([(1 - covered) * (1 - ground), (1 - covered) * ground, covered], dim=1)


def compose(background: Scenes, objects: Scenes, side: int) -> Tensor:
    """Draw several objects over one background, later ones on top: what repetition looks like, with the count known.

    Args:
        background: One scene, of which only the background is used.
        objects: Any number of scenes, of which only the objects are used; centres and radii may be any fractions of the
            frame.
        side: Height and width in pixels, at least 8.

    Returns:
        (3, side, side) float32 in [0, 1].

    Raises:
        ValueError: `background` is not one scene.
    """
    if len(background) != 1:
        raise ValueError(f"`background` holds {len(background)} scenes; exactly one is needed.")
    y, x, edge = _coordinates(side, side)
    picture = _background(background, y, x, edge)
    for one in objects.split(1):
        distance, color = _object(one, y, x, edge)
        picture = torch.lerp(picture, color, _coverage(distance, one, edge))
    return picture[0].clamp_(0, 1)


def _coordinates(height: int, width: int, windows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Pixel centres in frame units, (K, H, 1) and (K, 1, W), and the width of an anti-aliased edge, (K, 1, 1).

    K is the number of `windows`, or 1 for whole frames.
    """
    side = min(height, width)
    y = ((torch.arange(height) + 0.5 - height / 2) / side + 0.5).view(1, height, 1)
    x = ((torch.arange(width) + 0.5 - width / 2) / side + 0.5).view(1, 1, width)
    edge = torch.full((1, 1, 1), EDGE_PIXELS / side)
    if windows is None:
        return y, x, edge
    top, left, size = (column.view(-1, 1, 1) for column in windows.unbind(1))
    return top + size * y, left + size * x, size * edge


def _background(scenes: Scenes, y: Tensor, x: Tensor, edge: Tensor, flat: bool = False) -> Tensor:
    """Sky over ground, each with a vertical gradient and grain unless `flat`; (N, 3, H, W)."""
    ground = _ground(scenes, y, x, edge)
    sky_value, ground_value = scenes.sky_value.view(-1, 1, 1), scenes.ground_value.view(-1, 1, 1)
    if not flat:
        grain = _grain(scenes, y, x)
        sky_value = sky_value + 0.1 * (y - 0.3) + SKY_GRAIN * grain
        ground_value = ground_value + 0.12 * (1 - y) + GROUND_GRAIN * grain
    saturation = scenes.background_saturation
    sky = _tint(scenes.background_degrees, saturation).view(-1, 3, 1, 1) * sky_value.unsqueeze(1)
    earth = _tint(scenes.background_degrees, 1.35 * saturation).view(-1, 3, 1, 1) * ground_value.unsqueeze(1)
    return torch.lerp(sky, earth, ground.unsqueeze(1))


def _ground(scenes: Scenes, y: Tensor, x: Tensor, edge: Tensor) -> Tensor:
    """How much of each pixel lies below the horizon; (N, H, W)."""
    amplitude, cycles, phase, phase_2 = (column.view(-1, 1, 1) for column in scenes.horizon_wave.unbind(1))
    turns = 2 * math.pi * cycles * x
    line = scenes.horizon.view(-1, 1, 1) + amplitude * ((turns + phase).sin() + 0.5 * (2.7 * turns + phase_2).sin())
    return ((y - line) / edge + 0.5).clamp(0, 1)


def _grain(scenes: Scenes, y: Tensor, x: Tensor) -> Tensor:
    """Mean of sinusoid products, band-limited to 12 cycles per frame; separable, so one matrix product; (N, H, W)."""
    turns = 2 * math.pi * scenes.grain_frequency
    down = (turns[:, :, :1] * y.transpose(1, 2) + scenes.grain_phase[:, :, :1]).sin()
    across = (turns[:, :, 1:] * x + scenes.grain_phase[:, :, 1:]).sin()
    return torch.bmm(down.transpose(1, 2), across) * (2 / math.sqrt(turns.shape[1]))


def _object(scenes: Scenes, y: Tensor, x: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
    """Signed distance to the object in radii, (N, H, W), and its color everywhere, (N, 3, H, W)."""
    radius = scenes.radius.view(-1, 1, 1)
    offset_y = (y - scenes.center_y.view(-1, 1, 1)) / radius
    offset_x = (x - scenes.center_x.view(-1, 1, 1)) / radius
    cos, sin = scenes.rotation.cos().view(-1, 1, 1), scenes.rotation.sin().view(-1, 1, 1)
    own_y, own_x = cos * offset_y - sin * offset_x, sin * offset_y + cos * offset_x
    distance = torch.empty_like(own_y)
    for index, name in enumerate(SHAPES):
        chosen = scenes.shape == index
        if chosen.any():
            distance[chosen] = SIGNED_DISTANCES[name](own_y[chosen], own_x[chosen])
    tone = _tone(scenes, own_y, own_x, edge / radius)
    color = _tint(scenes.hue_degrees, scenes.saturation).view(-1, 3, 1, 1) * tone.unsqueeze(1)
    return distance, color


def _coverage(distance: Tensor, scenes: Scenes, edge: Tensor) -> Tensor:
    """How much of each pixel lies inside an outline, from signed distances in radii; (N, H, W) -> (N, 1, H, W)."""
    edge_in_radii = edge / scenes.radius.view(-1, 1, 1)
    return (0.5 - distance / edge_in_radii).clamp(0, 1).unsqueeze(1)


def _tone(scenes: Scenes, own_y: Tensor, own_x: Tensor, edge_in_radii: Tensor) -> Tensor:
    """HSV value of the object's pixels; (N, H, W)."""
    value = scenes.value.view(-1, 1, 1)
    tone = value.expand_as(own_y).clone()
    wave_number = 2 * math.pi / TEXTURE_PERIOD
    for name in ("stripes", "checker"):
        chosen = scenes.texture == TEXTURES.index(name)
        if not chosen.any():
            continue
        phase = scenes.texture_phase[chosen].view(-1, 2, 1, 1)
        wave = (wave_number * own_y[chosen] + phase[:, 0]).sin()
        if name == "checker":
            wave = wave * (wave_number * own_x[chosen] + phase[:, 1]).sin()
        # Near a tone edge the wave's slope is the wave number, so this is the same anti-aliasing as the outline's.
        light = (wave / (wave_number * edge_in_radii[chosen]) + 0.5).clamp(0, 1)
        tone[chosen] = value[chosen] * (DARK_TONE + (1 - DARK_TONE) * light)
    return tone


def _tint(hue_degrees: Tensor, saturation: Tensor) -> Tensor:
    """HSV to RGB at value 1; (N,) and (N,) -> (N, 3)."""
    sector = torch.tensor([5.0, 3.0, 1.0])
    ramp = torch.remainder(sector + hue_degrees.unsqueeze(1) / 60, 6)
    return 1 - saturation.unsqueeze(1) * torch.minimum(ramp, 4 - ramp).clamp(0, 1)


def disc(y: Tensor, x: Tensor) -> Tensor:
    """Disc of radius 1."""
    return torch.hypot(y, x) - 1


def square(y: Tensor, x: Tensor, half_side: float = 0.8) -> Tensor:
    """Square with `half_side`; its corners lie at 1.13."""
    return _box(y, x, half_side, half_side)


def triangle(y: Tensor, x: Tensor, circumradius: float = 1.12) -> Tensor:
    """Equilateral triangle on its base: the largest of the distances to its three sides' lines."""
    inradius = circumradius / 2
    lean = math.sqrt(3) / 2
    return torch.maximum(y, lean * x.abs() - 0.5 * y) - inradius


def star(y: Tensor, x: Tensor, outer: float = 1.13, inner: float = 0.52) -> Tensor:
    """Five-pointed star with a tip at the top: fold into one tenth, then the line from tip to notch."""
    tenth = math.pi / 5
    angle = torch.atan2(x, -y)  # 0 at the top tip
    folded = (torch.remainder(angle + tenth, 2 * tenth) - tenth).abs()
    radius = torch.hypot(y, x)
    along, across = radius * folded.cos(), radius * folded.sin()
    notch_along, notch_across = inner * math.cos(tenth), inner * math.sin(tenth)
    edge_along, edge_across = notch_along - outer, notch_across
    length = math.hypot(edge_along, edge_across)
    return ((along - outer) * edge_across - across * edge_along) / length


def ring(y: Tensor, x: Tensor, inner: float = 0.5) -> Tensor:
    """Annulus between `inner` and 1."""
    middle, half_width = (1 + inner) / 2, (1 - inner) / 2
    return (torch.hypot(y, x) - middle).abs() - half_width


def cross(y: Tensor, x: Tensor, half_length: float = 1.05, half_width: float = 0.36) -> Tensor:
    """Upright plus sign: union of two boxes."""
    return torch.minimum(_box(y, x, half_length, half_width), _box(y, x, half_width, half_length))


def _box(y: Tensor, x: Tensor, half_height: float, half_width: float) -> Tensor:
    """Axis-aligned box; exact along the sides, which is where anti-aliasing happens."""
    return torch.maximum(y.abs() - half_height, x.abs() - half_width)


SIGNED_DISTANCES = {"disc": disc, "square": square, "triangle": triangle, "star": star, "ring": ring, "cross": cross}
