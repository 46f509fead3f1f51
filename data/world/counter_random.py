"""Counter-based uniform numbers: each is a pure function of (seed, index, field), whatever the batch and the order."""

import numpy as np
from numpy.typing import NDArray

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
