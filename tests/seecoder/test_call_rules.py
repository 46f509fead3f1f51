"""Numbers and names of a call are checked by name, and sizes by the latent cell, without torch."""

import subprocess
import sys

import pytest

from seecoder.call_rules import check_arguments, check_size


def test_arguments_are_checked_by_name():
    check_arguments({"eta": 1.0, "autoencoder_memory": float("inf"), "image": object()})
    with pytest.raises(ValueError, match=r"`eta`=1\.5 must be a number from 0 to 1"):
        check_arguments({"eta": 1.5})


def test_sizes_are_whole_cells():
    check_size(16, 24, 8)
    with pytest.raises(ValueError, match=r"`width`=25 must be a positive multiple of 8 .* Use 24 or 32"):
        check_size(16, 25, 8)
    with pytest.raises(ValueError, match=r"`height`=4 must be a positive multiple of 8 .* Use 8 or 16"):
        check_size(4, 24, 8)
    for wrong in ("512", 512.0, None):
        with pytest.raises(ValueError, match=rf"`height`={wrong!r} must be a whole number\."):
            check_size(wrong, 24, 8)


def test_a_picture_that_memory_cannot_hold_is_refused():
    with pytest.raises(ValueError, match=r"`height`=8388608 and `width`=8388608 make a picture of 983,040 GiB, and"):
        check_size(2**23, 2**23, 8)


def test_a_system_that_does_not_tell_its_memory_refuses_no_size(monkeypatch):
    monkeypatch.setattr("os.sysconf_names", {})
    check_size(2**23, 2**23, 8)


def test_no_torch_is_needed():
    code = "import sys, seecoder.call_rules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["timesteps", "sigmas"])
def test_a_schedule_begins_with_the_most_noise_and_falls(name):
    check_arguments({name: [14.6, 3.0, 0.0], "num_inference_steps": 2})
    for wrong in ([0.0, 14.6], [14.6, 14.6, 0.0], [float("nan"), 0.0], []):
        with pytest.raises(ValueError, match=f"`{name}`=.* must be a list of .*, the noisiest first"):
            check_arguments({name: wrong})
