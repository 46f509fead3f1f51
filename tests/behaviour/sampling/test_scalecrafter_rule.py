"""ScaleCrafter's settings where nothing is published: networks like Stable Diffusion at other sizes, and any other."""

from types import SimpleNamespace
from typing import Any

import pytest

from seecoder.sampling.methods.scalecrafter.layer_settings import derived_settings

PLAIN, DAMPED = (0.6, False, 0.0), (0.7, True, 0.7)  # dilate_tau, progressive, damp_tau


def shaped(channels: tuple[int, ...], width: int) -> Any:
    """The part of a UNet that settings are derived from."""
    config = {"block_out_channels": channels, "cross_attention_dim": width}
    return SimpleNamespace(config=config, down_blocks=channels, mid_block=None, up_blocks=channels)


SD = [shaped((320, 640, 1280, 1280), width) for width in (768, 1024)]
SDXL, OTHER = shaped((320, 640, 1280), 2048), shaped((320, 640, 1280), 1024)


def found(unet: Any, rows: float, columns: float) -> tuple[Any, ...]:
    """Factors of the levels, the shares, and the factors of the weaker network, for sides in native sides."""
    settings = derived_settings(unet, (64, 64), (int(64 * rows), int(64 * columns)))
    shares = (settings.dilate_tau, settings.progressive, settings.damp_tau)
    levels = {int(pattern.removeprefix("level.")): factor for pattern, factor in settings.dilation.items()}
    return levels, shares, {int(name.removeprefix("level.")): factor for name, factor in settings.damping.items()}


@pytest.mark.parametrize("unet", SD)
@pytest.mark.parametrize(
    ("rows", "columns", "factors", "shares"),
    [
        (1.5, 1.5, {1: (1.5, 1.5), 2: (1.5, 1.5), 3: (1.5, 1.5)}, PLAIN),
        (3, 3, {1: (2, 2), 2: (3, 3), 3: (3, 3)}, DAMPED),
        (3, 1, {1: (2, 1), 2: (3, 1), 3: (3, 1)}, DAMPED),
        (1.5, 3, {1: (1.5, 2), 2: (1.5, 3), 3: (1.5, 3)}, DAMPED),
        (2.875, 2.875, {1: (2, 2), 2: (2.875, 2.875), 3: (2.875, 2.875)}, PLAIN),
        (6, 6, {1: (2, 2), 2: (3, 3), 3: (6, 6)}, DAMPED),
    ],
)
def test_sizes_between_those_published_for_stable_diffusion(unet, rows, columns, factors, shares) -> None:
    """The weaker network, where there is one, keeps the two deepest levels, as the published one does at 4x."""
    weaker = {level: factors[level] for level in (2, 3)} if shares is DAMPED else {}
    assert found(unet, rows, columns) == (factors, shares, weaker)


@pytest.mark.parametrize(
    ("rows", "columns", "factors", "shares"),
    [
        (1.5, 1.5, {1: (1.5, 1.5), 2: (1.5, 1.5)}, PLAIN),
        (3, 3, {1: (2, 2), 2: (3, 3)}, DAMPED),
        (1, 3, {1: (1, 2), 2: (1, 3)}, DAMPED),
    ],
)
def test_sizes_between_those_published_for_sdxl(rows, columns, factors, shares) -> None:
    assert found(SDXL, rows, columns) == (factors, shares, factors if shares is DAMPED else {})


@pytest.mark.parametrize(("scale", "inner"), [(2, 2), (3, 2), (4, 2)])
def test_another_network_of_the_same_depth_is_dilated_throughout_and_not_damped(scale, inner) -> None:
    assert found(OTHER, scale, scale) == ({1: (inner, inner), 2: (scale, scale)}, (1.0, False, 0.0), {})


@pytest.mark.parametrize(
    ("unet", "dilate_tau", "levels"), [(SD[0], 0.6, (1, 2, 3)), (SD[1], 0.4, (1, 2, 3)), (SDXL, 0.6, (2,))]
)
def test_a_picture_twice_as_high_has_the_published_settings_along_that_axis(unet, dilate_tau, levels) -> None:
    assert found(unet, 2, 1) == (dict.fromkeys(levels, (2, 1)), (dilate_tau, False, 0.0), {})
