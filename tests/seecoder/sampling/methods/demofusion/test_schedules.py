"""The cosine that all weights of DemoFusion follow, and the weights at steps that the paper's settings reach."""

import itertools

import pytest

from seecoder.sampling.methods.demofusion.schedules import blur_std, cosine_decay, dilated_weight, skip_weight


def test_check_08_cosine_decay_falls_from_one_to_zero() -> None:
    decays = [cosine_decay(timestep, 1000) for timestep in range(1001)]
    assert decays[1000] == 1.0
    assert decays[0] == pytest.approx(0.0, abs=1e-12)
    assert all(earlier < later for earlier, later in itertools.pairwise(decays))


@pytest.mark.parametrize(
    ("timestep", "table"), [(981, (0.9973, 0.9991, 0.9991)), (481, (0.1039, 0.4702, 0.4755)), (1, (0.0, 0.0, 0.0100))]
)
def test_check_08_the_three_weights(timestep, table) -> None:
    kappa = cosine_decay(timestep, 1000)
    weights = (skip_weight(kappa, 3.0), dilated_weight(kappa, 1.0), blur_std(kappa, 1.0, 1.0))
    assert weights == pytest.approx(table, abs=5e-5)
