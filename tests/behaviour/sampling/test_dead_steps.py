import pytest

from tests.behaviour.sampling.dead_steps import dead_steps


@pytest.mark.heavy
def test_left_out_steps_are_compared_with_all_of_them():
    """Three steps of one scene: at a threshold just below 1 the second phase leaves out its first."""
    rounding, skipping = dead_steps(sizes=((2, 1),), thresholds=(0.99,), steps=3)
    windows = 9 + 4  # of a step of the second phase
    assert (rounding["evaluations"], skipping["evaluations"]) == (3 + 3 * windows, 3 + 2 * windows)
    assert rounding["relative_rms"] < 1e-5  # some float32 units in the last place
    assert skipping["relative_rms"] > 100 * rounding["relative_rms"]
    assert skipping["largest_levels"] > skipping["mean_levels"] > 100 * rounding["mean_levels"]
