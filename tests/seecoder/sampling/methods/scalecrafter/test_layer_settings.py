"""Published networks get their published settings, all others those of the rule."""

import pytest

from seecoder.sampling.methods.scalecrafter.layer_settings import PUBLISHED, derived_settings, per_axis, rule


class Shape:
    """The part of a UNet that settings are derived from."""

    def __init__(self, channels, width) -> None:
        self.config = {"block_out_channels": channels, "cross_attention_dim": width}
        self.down_blocks, self.mid_block, self.up_blocks = list(channels), None, list(channels)


SD15, SD21 = Shape((320, 640, 1280, 1280), 768), Shape((320, 640, 1280, 1280), 1024)
SDXL, WORLD = Shape((320, 640, 1280), 2048), Shape((64, 96, 128), 128)


@pytest.mark.parametrize(
    ("unet", "native", "scale", "name"),
    [
        (SD15, 64, 2, "sd15"),
        (SD21, 64, 4, "sd21"),
        (SDXL, 128, 2, "sdxl"),
        (SDXL, 128, 2.5, "sdxl"),
        (SD15, 64, 4, "sd15"),
    ],
)
def test_published_networks_get_their_published_settings(unet, native, scale, name) -> None:
    size = (int(native * scale), int(native * scale))
    settings, published = derived_settings(unet, (native, native), size), PUBLISHED[name, float(scale)]
    assert per_axis(settings.dilation) == per_axis(published.dilation)
    assert per_axis(settings.damping) == per_axis(published.damping)
    assert (settings.dilate_tau, settings.damp_tau) == (published.dilate_tau, published.damp_tau)


def test_a_two_to_one_picture_is_dilated_two_to_one() -> None:
    settings = derived_settings(SD15, (64, 64), (128, 256))
    assert settings.dilation == {"level.1": (2.0, 2.0), "level.2": (2.0, 3.0), "level.3": (2.0, 4.0)}


@pytest.mark.parametrize(
    ("unet", "native", "deepest", "damping"),
    [
        (SD15, 64, {"level.3": 4.0, "level.2": 3.0}, 0.7),  # one configuration for both
        (SD21, 64, {"level.3": 4.0, "level.2": 3.0}, 0.0),
        (SDXL, 128, {"down.2": 3.0, "mid": 4.0, "up.0": 4.0, "up.1": 3.0}, 0.7),
    ],
)
def test_two_to_one_pictures_get_their_own_published_settings(unet, native, deepest, damping) -> None:
    square = derived_settings(unet, (native, native), (4 * native, 4 * native))
    assert damping == square.damp_tau or unet is SD21
    for size in ((2 * native, 4 * native), (4 * native, 2 * native)):
        settings = derived_settings(unet, (native, native), size)
        assert (settings.damp_tau, settings.dilate_tau) == (damping, square.dilate_tau)
        scales = (size[0] / native, size[1] / native)
        found = {name: settings.dilation[name] for name in deepest}
        assert found == {name: tuple(min(factor, scale) for scale in scales) for name, factor in deepest.items()}
    nearly_square = derived_settings(unet, (native, native), (3 * native, 4 * native))
    assert (nearly_square.damp_tau, nearly_square.dilation.keys()) == (square.damp_tau, square.dilation.keys())


def test_the_rule_leaves_the_first_level_alone_and_runs_throughout_on_small_networks() -> None:
    twice = derived_settings(WORLD, (16, 16), (32, 32))
    assert twice.dilation == {"level.1": (2.0, 2.0), "level.2": (2.0, 2.0)}
    assert (twice.dilate_tau, twice.damp_tau, twice.progressive) == (1.0, 0.0, False)
    fractional = derived_settings(WORLD, (16, 16), (24, 24))
    assert fractional.dilation == {"level.1": (1.5, 1.5), "level.2": (1.5, 1.5)}


@pytest.mark.parametrize("scale", [2.0, 4.0])
def test_the_rule_agrees_with_the_published_factors_for_four_levels(scale) -> None:
    assert rule(4, scale, is_published=True).dilation == PUBLISHED["sd15", scale].dilation
