"""Random numbers that belong to a sample: each is a pure function of (seed, purpose, epoch, sample).

Lightning saves no random state, and hidden generator state would tie a run to its number of processes. Drawing a
sample's noise from its own seed makes a continued run equal to an uninterrupted one, and N processes equal to one.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from data.shards.plan import derive_seed

HELD_OUT_EPOCH = -1  # held-out samples always get the noise of this epoch, so that evaluations are paired


def normal(seed: int, purpose: str, keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal noise, one independent draw for each sample.

    Args:
        seed: Seed of the run.
        purpose: Names the stream ("noise", "posterior", ...), so that streams of one sample are independent.
        keys: (N, 2) int64 epoch and sample number.
        shape: Shape of one sample.

    Returns:
        (N, *shape) float32 on the CPU.
    """
    return _drawn(Tensor.normal_, seed, purpose, keys, shape)


def uniform(seed: int, purpose: str, keys: Tensor, count: int) -> Tensor:
    """Uniform numbers in [0, 1); (N, 2) keys -> (N, count) float32 on the CPU."""
    return _drawn(Tensor.uniform_, seed, purpose, keys, (count,))


def _drawn(fill: Callable[..., Tensor], seed: int, purpose: str, keys: Tensor, shape: Sequence[int]) -> Tensor:
    out = torch.empty(len(keys), *shape)
    generator = torch.Generator()
    for row, key in zip(out, keys.tolist(), strict=True):
        fill(row, generator=generator.manual_seed(derive_seed(seed, purpose, *key)))
    return out


def held_out_keys(part: slice, epoch: int = HELD_OUT_EPOCH) -> Tensor:
    """Keys of held-out samples, which belong to no epoch of the training: (N, 2) int64 for a slice of N samples."""
    numbers = torch.arange(part.start, part.stop)
    return torch.stack([torch.full_like(numbers, epoch), numbers], dim=1)
