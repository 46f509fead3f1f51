"""Groups of blocks see the pictures as strongly as they are told, and the layers come back as they were."""

import pytest
import torch

from seecoder import SeeCoderPipeline, SeeCoderXLPipeline
from seecoder.pipelines.context.context_strength import layer_strengths
from seecoder.sampling import DemoFusion, MultiDiffusion

BLOCKS = {
    "block_out_channels": (8, 16, 16),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
ALL = {"down": 1.0, "mid": 1.0, "up": 1.0}


@pytest.fixture
def pipe(parts, build):
    pipeline = SeeCoderPipeline(**{**parts, "unet": build["unet"](**BLOCKS)})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def make(pipe, picture):
    def run(context_scale, **arguments):
        settings = {"num_inference_steps": 2, "output_type": "pt", **arguments}
        generator = torch.Generator().manual_seed(0)
        return pipe(picture, context_scale=context_scale, generator=generator, **settings).images

    return run


def names(unet, scale):
    """Addresses of the layers whose factor is not 1, with the factor."""
    of = {module: name for name, module in unet.named_modules()}
    return {of[module].split(".transformer")[0]: factor for module, factor in layer_strengths(unet, scale).items()}


def test_the_most_exact_address_counts_and_what_is_not_named_sees_nothing(pipe):
    scale = {"down": {"block_0": [0.5, 1.0], "block_1": 2.0}, "up": 1.0}
    assert names(pipe.unet, scale) == {
        "down_blocks.0.attentions.0": 0.5,
        "down_blocks.1.attentions.0": 2.0,
        "down_blocks.1.attentions.1": 2.0,
        "mid_block.attentions.0": 0.0,
    }
    assert names(pipe.unet, {**ALL, "up.block_1": 0.0}) == {
        f"up_blocks.1.attentions.{place}": 0.0 for place in range(3)
    }
    assert names(pipe.unet, 0.3) == {}


def test_layout_is_the_coarse_blocks_and_style_the_fine_ones(pipe):
    fine = {f"down_blocks.0.attentions.{place}" for place in range(2)}
    fine |= {f"up_blocks.2.attentions.{place}" for place in range(3)}
    coarse = {f"down_blocks.1.attentions.{place}" for place in range(2)} | {"mid_block.attentions.0"}
    coarse |= {f"up_blocks.1.attentions.{place}" for place in range(3)}
    assert names(pipe.unet, "layout") == dict.fromkeys(fine, 0.0)
    assert names(pipe.unet, "style") == dict.fromkeys(coarse, 0.0)


def test_sdxl_has_the_published_layers(build):
    unet = build["unet"](
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=20 + 6 * 8,
        block_out_channels=(8, 16, 16),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )
    everything = {name.split(".transformer")[0] for name, _ in unet.named_modules() if name.endswith("attn2")}
    assert everything - set(names(unet, "style")) == {"up_blocks.0.attentions.1"}
    assert everything - set(names(unet, "layout")) == {"down_blocks.2.attentions.1"}


@pytest.mark.heavy
@pytest.mark.parametrize("method", [None, MultiDiffusion(), DemoFusion()])
def test_all_blocks_at_a_number_are_that_number(make, method):
    large = {"method": method, "height": 32, "width": 32, "num_inference_steps": 3}
    torch.testing.assert_close(make(dict.fromkeys(ALL, 0.5), **large), make(0.5, **large), atol=1e-5, rtol=0)
    assert torch.equal(make(ALL, **large), make(1.0, **large))
    assert torch.equal(make(dict.fromkeys(ALL, 0.0)), make(0.0))
    assert not torch.equal(make("style", **large), make("layout", **large))


def test_layers_come_back_as_they_were_also_after_an_error(pipe, make):
    before = make(1.0)
    make("style")

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make("style", callback_on_step_end=stop)
    assert not [module for module in pipe.unet.modules() if module._forward_pre_hooks]
    assert torch.equal(make(1.0), before)


def test_a_text_beside_the_picture_keeps_its_strength(pipe, make, picture):
    torch.manual_seed(0)
    text = torch.randn(1, 5, 32)
    nothing = make(0.0, text=text)
    torch.testing.assert_close(make(dict.fromkeys(ALL, 0.0), text=text), nothing, atol=1e-5, rtol=0)
    assert not torch.equal(nothing, make(0.0))
    with pytest.raises(ValueError, match="`context_scale` by blocks needs `text` side by side"):
        make("style", text=text, text_weight=0.5)


def test_blocks_that_are_not_there_are_refused_by_name(make):
    with pytest.raises(ValueError, match=r"names 'down\.block_2', where this base reads no context\. It does in down"):
        make({"down": {"block_2": 1.0}})
    with pytest.raises(ValueError, match=r"`context_scale`='styel' must be a number, 'style' or 'layout' or numb"):
        make("styel")
    with pytest.raises(ValueError, match="must be a number"):
        make({"down": "much"})


def test_sdxl_keeps_its_pooled_vector(parts, build, picture):
    unet = build["unet"](
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=20 + 6 * 8
    )
    pipe = SeeCoderXLPipeline(**{**parts, "unet": unet, "encoder": build["encoder"](pooled_dim=20)})
    pipe.set_progress_bar_config(disable=True)

    def make(scale):
        generator = torch.Generator().manual_seed(0)
        return pipe(picture, context_scale=scale, num_inference_steps=2, output_type="pt", generator=generator).images

    assert torch.equal(make(ALL), make(1.0))
    assert not torch.equal(make(dict.fromkeys(ALL, 0.0)), make(0.0))
