import pytest
import torch
from diffusers import UNet2DConditionModel

from seecoder.sampling import HiDiffusion, sample
from seecoder.sampling.methods.hidiffusion.feature_sizes import Shrink
from seecoder.sampling.methods.hidiffusion.window_attention import WindowAttention
from seecoder.sampling.randomness import Randomness
from seecoder.sampling.stages import Run
from seecoder.sampling.step import Step
from seecoder.sampling.stepper import Stepper


def step(index: int = 0) -> Step:
    return Step(index, 10, torch.tensor(981), 981.0, 1000, (32, 32), (16, 16))


def call(unet, latents, context):
    return unet(latents, 500, encoder_hidden_states=context[:1]).sample


@pytest.mark.parametrize("size", [(32, 32), (36, 20), (33, 47)])
@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("level", [0, 1])
def test_deep_features_shrink_and_the_output_keeps_its_size(size, factor, level, make_unet, context) -> None:
    unet, sizes = make_unet(), []
    handle = unet.mid_block.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].shape[-2:]))
    latents = torch.randn((1, 4, *size), dtype=torch.float64)
    with Shrink(unet, level, factor, 10, 10).active(step(), size):
        assert call(unet, latents, context).shape == latents.shape
    handle.remove()
    expected = list(size)
    for place in range(2):
        stride = 2 * factor if place == level else 2
        expected = [-(-side // stride) for side in expected]
    assert list(sizes[0]) == expected


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_unet_is_given_back_bit_identical(interrupted, make_unet, context) -> None:
    unet, latents = make_unet(), torch.randn((1, 4, 32, 32), dtype=torch.float64)
    before = call(unet, latents, context)
    for patch in (Shrink(unet, 0, 2, 0, 10), WindowAttention(unet)):
        try:
            with patch.active(step(), (32, 32)):
                assert not torch.allclose(call(unet, latents, context), before)
                if interrupted:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert interrupted
        assert torch.equal(call(unet, latents, context), before)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())


def test_the_shrinking_ends_in_two_stages() -> None:
    class Block:
        def __init__(self) -> None:
            sampler = torch.nn.Module()
            sampler.conv = torch.nn.Conv2d(1, 1, 3, stride=2, padding=1)
            self.downsamplers = self.upsamplers = [sampler]

    unet = torch.nn.Module()
    unet.down_blocks = unet.up_blocks = [Block(), Block()]
    shrink = Shrink(unet, 0, 4, 3, 7)
    assert [shrink.factor(index) for index in range(10)] == [4] * 3 + [2] * 4 + [1] * 3


def test_a_run_differs_from_plain_above_native_and_equals_it_at_native(
    make_scheduler, make_unet, denoiser_of, context
) -> None:
    unet = make_unet()

    def run(method, side):
        return sample(
            denoiser_of(unet),
            make_scheduler("ddim"),
            latent_shape=(1, 4, side, side),
            native_size=(16, 16),
            num_inference_steps=3,
            context=context[:1],
            generator=torch.Generator().manual_seed(0),
            method=method,
            unet=unet,
        )

    assert torch.equal(run(HiDiffusion(), 16), run(None, 16))
    assert not torch.allclose(run(HiDiffusion(), 32), run(None, 32), rtol=1e-3)
    with pytest.raises(ValueError, match=r"`level`=2 has no downsampler; this UNet has them on levels 0 to 1"):
        run(HiDiffusion(level=2), 32)


@pytest.mark.parametrize(
    ("width", "levels", "level"), [(2048, 3, 1), (768, 4, 0), (1024, 3, 0)], ids=["SDXL", "SD", "SDXL's depth alone"]
)
@pytest.mark.parametrize(
    ("scale", "factors"),
    [
        (2, [2] * 20 + [1] * 30),  # T1 = 0.4, T2 = 0
        (3, [2] * 20 + [1] * 30),
        (4, [4] * 15 + [2] * 20 + [1] * 15),  # T1 = 0.7, T2 = 0.3
    ],
)
def test_the_defaults_are_those_published(width, levels, level, scale, factors, make_scheduler, context) -> None:
    sdxl = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            **(sdxl if width == 2048 else {}),
            block_out_channels=(32,) * levels,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            cross_attention_dim=width,
            layers_per_block=1,
        )
    randomness = Randomness(torch.Generator(), 1)
    size = (16 * scale, 16 * scale)
    run = Run(
        latent_shape=(1, 4, *size),
        native_size=(16, 16),
        stepper=Stepper(make_scheduler("ddim"), 50, eta=0.0, randomness=randomness, device=context.device),
        randomness=randomness,
        guidance_scale=5.0,
        guidance_rescale=0.0,
        device=context.device,
        dtype=context.dtype,
        unet=unet,
    )
    (shrink,) = HiDiffusion(window_attention=False).patches(run, size)["main"]
    assert [shrink.factor(index) for index in range(50)] == factors
    with shrink.active(step(), size):
        convs = [block.downsamplers[0].conv for block in unet.down_blocks[:-1]]
        strides = [2 * getattr(vars(conv).get("_conv_forward"), "args", (conv, 1))[1] for conv in convs]
    assert strides == [2 * factors[0] if place == level else 2 for place in range(len(strides))]


def build_blocks(down: str, up: str) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=(down, "DownBlock2D"),
        up_block_types=("UpBlock2D", up),
        mid_block_type=None,
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )


@pytest.mark.parametrize("blocks", [("AttnDownBlock2D", "AttnUpBlock2D"), ("ResnetDownsampleBlock2D", "UpBlock2D")])
def test_blocks_that_cannot_be_changed_are_refused_by_name(blocks) -> None:
    with pytest.raises(ValueError, match=f"`unet` has a {blocks[0]}, which HiDiffusion cannot change"):
        HiDiffusion().check_layers(build_blocks(*blocks))


def test_a_network_without_attention_has_no_windows(context) -> None:
    unet, latents = build_blocks("DownBlock2D", "UpBlock2D"), torch.randn((1, 4, 32, 32))
    HiDiffusion().check_layers(unet)
    plain = call(unet, latents, context.float())
    with WindowAttention(unet).active(step(), (32, 32)):
        assert torch.equal(call(unet, latents, context.float()), plain)
