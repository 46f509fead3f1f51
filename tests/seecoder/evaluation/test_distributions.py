"""Distances of sets of features, against closed forms and cases that are counted by hand."""

import math

import pytest
import torch

from seecoder.evaluation.distributions import covered, fid, kid


def cloud(count: int, mean: float, std: float, width: int = 4, seed: int = 0) -> torch.Tensor:
    """Features whose sample mean and covariance are exactly `mean` and `std` squared times the identity."""
    points = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    points = points - points.mean(0)
    root = torch.linalg.cholesky(torch.cov(points.T))
    return mean + std * torch.linalg.solve_triangular(root, points.T, upper=False).T


def test_fid_of_two_normal_clouds_is_the_closed_form():
    # |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) = D (mean difference)^2 + D (difference of deviations)^2
    assert fid(cloud(50, 1.0, 3.0), cloud(80, -1.0, 1.0, seed=1)) == pytest.approx(4 * 4 + 4 * 4, rel=1e-9)


def test_fid_of_a_set_with_itself_is_zero_even_where_it_is_singular():
    few = cloud(50, 2.0, 1.0)[:3]
    assert fid(cloud(50, 2.0, 1.0), cloud(50, 2.0, 1.0)) == pytest.approx(0, abs=1e-9)
    assert fid(few, few) == pytest.approx(0, abs=1e-5)


def test_kid_is_unbiased_and_the_same_each_time():
    # Twelve pairs of sets of one distribution: the mean is zero within three standard errors.
    draws = [torch.randn(2, 60, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(12)]
    values = torch.tensor([kid(one, other)[0] for one, other in draws])
    assert abs(float(values.mean())) < 3 * float(values.std()) / math.sqrt(len(values))
    assert float(values.min()) < 0  # the biased estimate is never below zero
    state = torch.get_rng_state()
    assert kid(*draws[0]) == kid(*draws[0])
    assert torch.equal(state, torch.get_rng_state())


def test_kid_of_different_clouds_is_that_of_its_kernel():
    # All points equal: MMD^2 = k(0,0) + k(a,a) - 2 k(0,a) with k(x,y) = (x.y/D + 1)^3, here 1 + 8 - 2.
    value, std = kid(torch.zeros(10, 3), torch.ones(10, 3))
    assert (value, std) == (pytest.approx(7), pytest.approx(0, abs=1e-12))


def test_precision_and_recall_are_counted_by_hand():
    line = torch.arange(6.0).unsqueeze(1)  # the third neighbour is 2 away inside, 3 at the ends
    assert covered(line, line).all()
    half = torch.cat([line[:3], 100 + line[:3]])
    assert covered(half, line).double().mean() == 0.5
    assert not covered(line + 100, line).any()
    assert covered(torch.tensor([[-3.0], [-3.1]]), line).tolist() == [True, False]
