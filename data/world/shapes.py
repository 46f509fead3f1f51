"""Signed distances to the world's shapes in the object's own frame: centre at the origin, radius 1, y down.

Every function takes coordinates `y`, `x` of any one shape and returns distances: negative inside, positive outside, in
radii. All shapes stay within 1.13 radii of the centre and cover 1.6 to 3.1 squared radii.
"""

import math

import torch
from torch import Tensor


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
