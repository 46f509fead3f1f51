"""Outlines of the world's objects."""

import pytest
import torch

from data.world.shapes import SIGNED_DISTANCES


@pytest.mark.parametrize("name", list(SIGNED_DISTANCES))
def test_signed_distance_is_a_distance(name):
    # Gradient length 1 near the outline, 1-Lipschitz everywhere, negative inside, positive far away.
    axis = torch.linspace(-1.5, 1.5, 301, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    distance = SIGNED_DISTANCES[name](y, x)
    assert max(distance.diff(dim=0).abs().max(), distance.diff(dim=1).abs().max()) < 0.01 * (1 + 1e-6)
    assert (distance[1:, 1:] - distance[:-1, :-1]).abs().max() < 0.01 * 2**0.5 * (1 + 1e-6)
    down, across = torch.gradient(distance, spacing=0.01)
    slope = torch.hypot(down, across)
    near = distance.abs() < 0.1
    assert slope[near].median() == pytest.approx(1, abs=1e-2)
    inside = distance < 0
    area = inside.double().mean() * 9
    assert 1.6 < area < 3.2
    assert torch.hypot(y, x)[inside].max() < 1.14
