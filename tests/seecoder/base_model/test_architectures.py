"""How a network is built is read off its shapes, as diffusers would have built it."""

import pytest
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

from seecoder.base_model.architectures import controlnet_config, count_numbers, unet_config, vae_config
from tests.fixtures.pipelines import build_unet, build_vae


def shapes_of(network):
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"in_channels": 9, "layers_per_block": 2, "block_out_channels": (16, 32)},
        {"use_linear_projection": True, "cross_attention_dim": 24},
        {
            "down_block_types": ("CrossAttnDownBlock2D",) * 3,
            "up_block_types": ("CrossAttnUpBlock2D",) * 3,
            "block_out_channels": (8, 16, 32),
            "transformer_layers_per_block": (1, 2, 3),
        },
        {  # as SSD-1B, whose upward half is no mirror image of the other, and which has no attention in the middle
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (8, 16, 16),
            "layers_per_block": 2,
            "mid_block_type": "UNetMidBlock2D",
            "transformer_layers_per_block": [1, [2, 2], [3, 3]],
            "reverse_transformer_layers_per_block": [[3, 3, 4], [2, 1, 1], 1],
            "use_linear_projection": True,
        },
        {"mid_block_type": None, "layers_per_block": 1},  # as tiny-sd
    ],
)
def test_a_unet_of_these_shapes_is_built_again(changes):
    unet = build_unet(**changes)
    config = unet_config(shapes_of(unet))
    assert shapes_of(UNet2DConditionModel.from_config(config)) == shapes_of(unet)


def test_a_controlnet_and_a_vae_of_these_shapes_are_built_again():
    controlnet = ControlNetModel.from_unet(build_unet(), conditioning_embedding_out_channels=(8, 12, 16))
    assert shapes_of(ControlNetModel.from_config(controlnet_config(shapes_of(controlnet)))) == shapes_of(controlnet)
    for changes in (
        {},
        {"layers_per_block": 2, "latent_channels": 16},
        {"use_quant_conv": False},
        {"mid_block_add_attention": False},
    ):
        vae = build_vae(**changes)
        assert shapes_of(AutoencoderKL.from_config(vae_config(shapes_of(vae)))) == shapes_of(vae)


@pytest.mark.parametrize(("linear", "heads"), [(False, 8), (True, [1, 2])])
def test_heads_and_groups_are_those_of_the_published_models(linear, heads):
    options = {"block_out_channels": (64, 128), "norm_num_groups": 32, "use_linear_projection": linear}
    config = unet_config(shapes_of(build_unet(**options)))
    assert config["attention_head_dim"] == heads
    assert config["norm_num_groups"] == 32
    assert unet_config(shapes_of(build_unet(block_out_channels=(12, 24))))["norm_num_groups"] == 4


def test_numbers_are_counted_once():
    names = dict.fromkeys(["a.0.x", "a.0.y", "a.11.x", "b.2"])
    assert count_numbers(names, "a.") == 2
