"""What an encoder takes: pixels that it can encode, and offsets of its positions. Anything else is refused."""

from collections.abc import Sequence

import torch

MIN_SIDE = 32  # pixels; the coarsest map of the backbone would be empty below


def check_pixels(pixels: torch.Tensor) -> None:
    """Check that pixels can be encoded.

    Raises:
        TypeError: They are integers.
        ValueError: They are not (B, 3, H, W), or too small.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(f"`pixels` of shape {tuple(pixels.shape)} must be (B, 3, H, W).")
    if not pixels.is_floating_point():
        raise TypeError(f"`pixels` of {pixels.dtype} must be floating point in [0, 1]. Divide bytes by 255.")
    height, width = pixels.shape[-2:]
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"`pixels` of {height}x{width} must have at least {MIN_SIDE} on both sides. Enlarge them.")


def check_position_jitter(jitter: torch.Tensor, num_levels: int, batch_size: int, *, position_aware: bool) -> None:
    """Check that offsets of positions fit an encoder and a batch.

    Raises:
        ValueError: They are neither (num_levels, 2) nor (batch_size, num_levels, 2), or the encoder has no positions.
    """
    if not position_aware:
        raise ValueError("`position_jitter` has no effect on an encoder with position_aware=False; leave it out.")
    expected = [(num_levels, 2), (batch_size, num_levels, 2)]
    if tuple(jitter.shape) not in expected:
        raise ValueError(f"`position_jitter` of shape {tuple(jitter.shape)} must be {expected[0]} or {expected[1]}.")


def check_mask(mask: torch.Tensor, pixels: torch.Tensor) -> None:
    """Check that a mask fits pixels (B, 3, H, W).

    Raises:
        ValueError: It is not (B, 1, H, W) with values in [0, 1], or nothing of a picture counts.
    """
    expected = (len(pixels), 1, *pixels.shape[-2:])
    if tuple(mask.shape) != expected or not ((mask >= 0) & (mask <= 1)).all():
        raise ValueError(f"`mask` of shape {tuple(mask.shape)} must be {expected} with values in [0, 1].")
    if not mask.flatten(1).any(dim=1).all():
        raise ValueError("`mask` must be above zero somewhere in every picture.")


def standardise(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Subtract a mean from each channel of (B, 3, H, W) and divide by a standard deviation, in the dtype given."""
    if not any(mean) and all(value == 1 for value in std):
        return pixels
    return torch.stack([(pixels[:, i] - mean[i]) / std[i] for i in range(len(mean))], dim=1)
