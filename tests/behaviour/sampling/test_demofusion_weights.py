"""The weights of DemoFusion's parts at steps that the paper's settings reach."""

import pytest

from seecoder.sampling.methods.demofusion.dilated_sampling import blur_std, dilated_weight
from seecoder.sampling.methods.demofusion.skip_residual import cosine_decay, skip_weight


@pytest.mark.parametrize(
    ("timestep", "table"), [(981, (0.9973, 0.9991, 0.9991)), (481, (0.1039, 0.4702, 0.4755)), (1, (0.0, 0.0, 0.0100))]
)
def test_check_08_the_three_weights(timestep, table) -> None:
    kappa = cosine_decay(timestep, 1000)
    weights = (skip_weight(kappa, 3.0), dilated_weight(kappa, 1.0), blur_std(kappa, 1.0, 1.0))
    assert weights == pytest.approx(table, abs=5e-5)
