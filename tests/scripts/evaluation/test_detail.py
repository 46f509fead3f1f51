import math

import pytest
import torch
from torch.nn.functional import interpolate

from data.world.render import render
from data.world.scenes import sample_scenes
from scripts.evaluation.detail import radial_power_spectrum, spectrum_distance


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


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="same size"):
        spectrum_distance(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 32, 32))
