"""Measures of detail, against pictures whose answer is known."""

import math

import pytest
import torch
from torch.nn.functional import interpolate

from data.world.render import render
from data.world.scenes import sample_scenes
from seecoder.evaluation.detail import (
    band_distance,
    compression_ratio,
    glcm_scores,
    radial_power_spectrum,
    spectrum_distance,
)


def bits(*probabilities: float) -> float:
    return -sum(p * math.log2(p) for p in probabilities)


def test_a_flat_picture_has_no_co_occurrence_but_of_one_grey():
    found = glcm_scores(torch.full((3, 128, 64), 0.5))
    assert found["glcm_entropy"] == 0.0
    # The published figure: 16 ones (4 distances, 4 directions) among 16 * 64 * 64 values.
    share = 1 / 64**2
    assert found["glcm_score"] == pytest.approx(bits(share, 1 - share))


def test_two_halves_are_counted_by_hand():
    picture = torch.zeros(3, 64, 64)
    picture[:, :, 32:] = 1.0
    expected = []
    for distance in (1, 2, 3, 4):
        for right in (distance, round(distance * math.sqrt(0.5)), 0, round(distance * math.sqrt(0.5))):
            width = 64 - right  # columns in which a pair begins: 32 - right stay dark, 32 - right bright, `right` cross
            expected.append(bits(*[n / width for n in (32 - right, 32 - right, right) if n]))
    assert glcm_scores(picture)["glcm_entropy"] == pytest.approx(sum(expected) / 16)


def test_noise_has_more_of_everything_and_small_pictures_have_no_patch():
    noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert glcm_scores(noise)["glcm_entropy"] > 8
    assert compression_ratio(noise) < 3 < compression_ratio(torch.full((3, 64, 64), 0.5))
    assert glcm_scores(noise[:, :63]) == {}


def test_blur_lowers_detail():
    scenes = sample_scenes(16, seed=0)
    truth = render(scenes, 128)
    upscaled = interpolate(render(scenes, 64), scale_factor=2, mode="bicubic").clamp(0, 1)
    highest = radial_power_spectrum(truth, bins=4)[:, -1]
    assert (radial_power_spectrum(upscaled, bins=4)[:, -1] < 0.5 * highest).all()
    other = render(sample_scenes(16, seed=1), 128)
    assert spectrum_distance(upscaled, truth) > 3 * spectrum_distance(other, truth)


def test_spectrum_of_white_noise_is_flat_and_calibrated():
    noise = torch.randn(64, 1, 64, 64, generator=torch.manual_seed(0)).expand(64, 3, 64, 64)
    spectrum = radial_power_spectrum(noise, bins=8).mean(0)
    window = torch.hann_window(64, False, dtype=torch.float64)
    # The lowest band is left out: it holds the mean, which is removed.
    assert torch.allclose(spectrum[1:], (window.square().mean() ** 2).expand(7), rtol=0.05)


def test_spectrum_of_a_wave_peaks_in_its_band():
    wave = torch.sin(2 * math.pi * 0.25 * torch.arange(64)).view(1, 1, 1, 64).expand(1, 3, 64, 64)
    assert radial_power_spectrum(wave, bins=8)[0].argmax() == 4  # 0.25 of 0.5 cycles per pixel: band 4 of 8


def test_ten_times_the_power_are_ten_decibels():
    spectra = torch.rand(3, 8, generator=torch.Generator().manual_seed(0)).double() + 1
    assert band_distance(10 * spectra, spectra) == pytest.approx(10)


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="same size"):
        spectrum_distance(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 32, 32))
