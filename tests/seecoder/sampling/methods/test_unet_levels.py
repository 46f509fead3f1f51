"""Patterns that name nothing are refused with what there is."""

import pytest
import torch

from seecoder.sampling.methods.unet_levels import select, spatial_convolutions


@pytest.mark.parametrize(
    "pattern", ["level.3", "level.99", "level.-1", "level.x", "level.", "level.²", "down.3", "l", ""]
)
def test_what_matches_nothing_is_refused(pattern, make_unet) -> None:
    with pytest.raises(
        ValueError, match=f"^The pattern '{pattern}' matches no convolution of this UNet, which has 3 lev"
    ):
        select(make_unet(), pattern)


def test_levels_are_blocks_on_the_way_down_and_up(make_unet) -> None:
    unet = make_unet()
    assert set(select(unet, "level.0")) == set(select(unet, "down.0")) | set(select(unet, "up.2"))
    assert set(select(unet, "level.2")) == set(select(unet, "down.2")) | set(select(unet, "mid")) | set(
        select(unet, "up.0")
    )
    assert set(select(unet, "level.1.sampler")) == {"down.1.sampler.conv", "up.1.sampler.conv"}


def test_a_layer_whose_weight_is_out_of_reach_is_named(make_unet) -> None:
    unet = make_unet()
    unet.mid_block.resnets[0].conv1 = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"its layer mid.resnets.0.conv1 is a torch.nn.modules.linear.Identity"):
        spatial_convolutions(unet)
