"""Pixels and offsets that an encoder cannot take are refused; those that it can are standardised exactly."""

import pytest
import torch

from seecoder.encoder.input_checks import check_mask, check_pixels, check_position_jitter, standardise


@pytest.mark.parametrize(
    ("pixels", "error", "message"),
    [
        (torch.rand(1, 3, 31, 64), ValueError, "`pixels` of 31x64 must have at least 32 on both sides"),
        (torch.rand(3, 64, 64), ValueError, r"`pixels` of shape \(3, 64, 64\) must be \(B, 3, H, W\)"),
        (torch.rand(1, 4, 64, 64), ValueError, r"must be \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), TypeError, "`pixels` of torch.uint8 must be floating point"),
    ],
)
def test_what_cannot_be_encoded_is_refused(pixels, error, message):
    with pytest.raises(error, match=message):
        check_pixels(pixels)


def test_the_smallest_picture_is_accepted() -> None:
    check_pixels(torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize("shape", [(3, 2), (5, 3, 2)])
def test_jitter_fits_the_levels_or_the_batch(shape: tuple[int, ...]) -> None:
    check_position_jitter(torch.zeros(shape), num_levels=3, batch_size=5, position_aware=True)
    with pytest.raises(ValueError, match=r"must be \(4, 2\) or \(6, 4, 2\)"):
        check_position_jitter(torch.zeros(shape), num_levels=4, batch_size=6, position_aware=True)
    with pytest.raises(ValueError, match="has no effect on an encoder with position_aware=False"):
        check_position_jitter(torch.zeros(shape), num_levels=3, batch_size=5, position_aware=False)


def test_pixels_are_standardised_channel_by_channel() -> None:
    pixels = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert standardise(pixels, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)) is pixels
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    expected = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(standardise(pixels, mean, std), expected)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 1, 4, 5), r"`mask` of shape \(2, 1, 4, 5\) must be \(1, 1, 4, 5\) with values in \[0, 1\]"),
        (torch.full((1, 1, 4, 5), 1.5), r"with values in \[0, 1\]"),
        (torch.full((1, 1, 4, 5), float("nan")), r"with values in \[0, 1\]"),
        (torch.zeros(1, 1, 4, 5), "must be above zero somewhere"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask: torch.Tensor, message: str) -> None:
    check_mask(torch.full((1, 1, 4, 5), 0.5), torch.rand(1, 3, 4, 5))
    with pytest.raises(ValueError, match=message):
        check_mask(mask, torch.rand(1, 3, 4, 5))
