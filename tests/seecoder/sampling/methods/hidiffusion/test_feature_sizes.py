"""What a ControlNet adds to feature maps that are kept small."""

import pytest
import torch
from diffusers import ControlNetModel

from seecoder.sampling import Control, HiDiffusion, sample
from seecoder.sampling.methods.hidiffusion.feature_sizes import Shrink, levels_of_features
from seecoder.sampling.step import Step

SIDE = 16
CELL = 2  # pixels


def step() -> Step:
    return Step(0, 10, torch.tensor(981), 981.0, 1000, (32, 32), (SIDE, SIDE))


@pytest.fixture
def make_control(make_unet):
    """A ControlNet of the toy UNet, whose last layers are not zero, as the engine's callable."""

    def make(unet, scale=1.0):
        torch.manual_seed(0)
        network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16)).double().eval()
        for name, weight in network.named_parameters():
            if "controlnet_" in name:
                weight.data.normal_(std=0.2)

        def residuals(latents, timestep, context, image):
            down, mid = network.requires_grad_(False)(
                latents, timestep, context, image, conditioning_scale=scale, return_dict=False
            )
            return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}

        return residuals

    return make


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (24, 24), (23, 31), (32, 32)])
@pytest.mark.parametrize("level", [0, 1])
def test_hidiffusion_runs_under_a_controlnet(
    size, level, make_scheduler, make_unet, denoiser_of, make_control, context
) -> None:
    """At every size; residuals of zero change nothing, others do, and at the native size it is plain control."""
    unet = make_unet()

    def run(method, scale=None):
        image = torch.rand((1, 3, size[0] * CELL, size[1] * CELL), generator=torch.Generator().manual_seed(1))
        control = None if scale is None else Control(image.double(), make_control(unet, scale), pixels_per_cell=CELL)
        return sample(
            denoiser_of(unet),
            make_scheduler("ddim"),
            latent_shape=(1, 4, *size),
            native_size=(SIDE, SIDE),
            num_inference_steps=2,
            context=context[:1],
            generator=torch.Generator().manual_seed(0),
            method=method,
            unet=unet,
            control=control,
        )

    method = HiDiffusion(level=level, shrink_tau=1.0)
    assert torch.equal(run(method, 0.0), run(method))
    assert not torch.allclose(run(method, 1.0), run(method), rtol=1e-3)
    assert torch.equal(run(method, 1.0), run(None, 1.0)) == (size == (SIDE, SIDE))


@pytest.mark.parametrize("size", [(32, 32), (36, 20), (33, 47), (5, 2)])
@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("level", [0, 1])
def test_residuals_come_at_the_sizes_of_the_maps_that_they_are_added_to(
    size, factor, level, make_unet, context
) -> None:
    """Maps that are constant in space are so at any size: added at the plain sizes no less than at the right."""
    unet, levels, small = make_unet(), [size], [size]
    for place in (0, 1):
        levels.append(tuple(-(-side // 2) for side in levels[-1]))
        small.append(tuple(-(-side // (2 * factor if place == level else 2)) for side in small[-1]))
    values = torch.randn((7, 16, 1, 1), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    places, channels = (0, 0, 1, 1, 2, 2, 2), (8, 8, 8, 16, 16, 16, 16)

    def residuals(sizes):
        maps = [
            value[None, :width].expand(1, -1, *sizes[place])
            for value, width, place in zip(values, channels, places, strict=True)
        ]
        return {"down_block_additional_residuals": maps[:-1], "mid_block_additional_residual": maps[-1]}

    latents = torch.randn((1, 4, *size), generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def call(maps):
        with Shrink(unet, level, factor, 10, 10).active(step(), size):
            return unet(latents, 500, encoder_hidden_states=context[:1], **maps).sample

    torch.testing.assert_close(call(residuals(levels)), call(residuals(small)))
    assert not torch.allclose(call(residuals(levels)), call({}), rtol=1e-3)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())


@pytest.mark.parametrize("size", [(32, 32), (36, 20), (33, 47)])
@pytest.mark.parametrize("level", [0, 1])
def test_features_of_an_adapter_come_at_the_sizes_of_the_maps_that_they_are_added_to(
    size, level, make_unet, context
) -> None:
    """Maps that are constant in space are so at any size: added at the plain sizes no less than at the right."""
    unet = make_unet()
    strides = {"plain": (2, 2), "small": tuple(4 if place == level else 2 for place in (0, 1))}
    values = torch.randn((3, 16, 1, 1), generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def features(name):
        sizes = [size]
        for stride in strides[name]:
            sizes.append(tuple(-(-side // stride) for side in sizes[-1]))
        return [
            value[None, :width].expand(1, -1, *sizes[place])
            for value, width, place in zip(
                values, unet.config.block_out_channels, levels_of_features(unet), strict=True
            )
        ]

    latents = torch.randn((1, 4, *size), generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def call(name):
        given = {} if name is None else {"down_intrablock_additional_residuals": features(name)}
        with Shrink(unet, level, 2, 10, 10).active(step(), size):
            return unet(latents, 500, encoder_hidden_states=context[:1], **given).sample

    torch.testing.assert_close(call("plain"), call("small"))
    assert not torch.allclose(call("plain"), call(None), rtol=1e-3)
