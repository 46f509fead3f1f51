"""Several ControlNets, and SDXL's, against diffusers' own pipelines."""

import diffusers
import pytest
import torch

from seecoder import SeeCoderPipeline, SeeCoderXLPipeline
from seecoder.pipelines.adapters.control import check_adapter
from seecoder.sampling import HiDiffusion, MultiDiffusion
from tests.fixtures.pipelines import (
    build_controlnet,
    build_scheduler,
    build_sdxl_unet,
    build_t2i_adapter,
    build_unet,
    build_vae,
)

CONTEXT, POOLED = torch.randn(1, 6, 32), torch.randn(1, 32)
PICTURES = list(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))


def pair(*, xl=False, count=2):
    """Our pipeline with so many ControlNets, and diffusers' with the same parts."""
    unet, vae = (build_sdxl_unet if xl else build_unet)(), build_vae()
    nets = [build_controlnet(unet, seed) for seed in range(count)]
    ours = (SeeCoderXLPipeline if xl else SeeCoderPipeline)(vae, unet, build_scheduler(), controlnet=nets)
    name = "StableDiffusionXLControlNetPipeline" if xl else "StableDiffusionControlNetPipeline"
    lacks = ["text_encoder", "tokenizer", *(["text_encoder_2", "tokenizer_2"] if xl else ["safety_checker"])]
    options = {"add_watermarker": False} if xl else {"feature_extractor": None, "requires_safety_checker": False}
    stock = getattr(diffusers, name)(
        vae=vae, unet=unet, controlnet=nets, scheduler=build_scheduler(), **dict.fromkeys(lacks), **options
    )
    for pipe in (ours, stock):
        pipe.set_progress_bar_config(disable=True)
    return ours, stock


def common():
    return {
        "height": 16,
        "width": 16,
        "num_inference_steps": 5,
        "guidance_scale": 3.0,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(0),
    }


@pytest.mark.parametrize("xl", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_the_latents_are_those_of_the_stock_pipeline(xl, count) -> None:
    ours, stock = pair(xl=xl, count=count)
    spans = {
        "controlnet_conditioning_scale": [0.7, 1.3][:count],
        "control_guidance_start": [0.0, 0.5][:count],
        "control_guidance_end": [0.5, 1.0][:count],
    }
    pooled = {"pooled_context": POOLED} if xl else {}
    got = ours(context=CONTEXT, control_image=PICTURES[:count], **pooled, **spans, **common()).images
    pooled = {"pooled_prompt_embeds": POOLED, "negative_pooled_prompt_embeds": POOLED * 0} if xl else {}
    images = [picture[None] for picture in PICTURES[:count]]
    want = stock(
        prompt_embeds=CONTEXT, negative_prompt_embeds=CONTEXT * 0, image=images, **pooled, **spans, **common()
    ).images
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    without = ours(
        context=CONTEXT,
        control_image=PICTURES[:count],
        controlnet_conditioning_scale=0.0,
        **({"pooled_context": POOLED} if xl else {}),
        **common(),
    ).images
    assert (got - without).abs().max() > 1e-3


@pytest.mark.parametrize("xl", [False, True])
def test_a_net_that_pools_its_picture_leaves_the_unconditional_branch_alone_as_in_stock(xl) -> None:
    """As ControlNet 1.1's shuffle is published."""
    ours, stock = pair(xl=xl, count=1)
    for net in ours.controlnet.nets:
        net.register_to_config(global_pool_conditions=True)
    pooled = {"pooled_context": POOLED} if xl else {}
    got = ours(context=CONTEXT, control_image=PICTURES[:1], **pooled, **common()).images
    pooled = {"pooled_prompt_embeds": POOLED, "negative_pooled_prompt_embeds": POOLED * 0} if xl else {}
    images = [PICTURES[0][None]]
    want = stock(prompt_embeds=CONTEXT, negative_prompt_embeds=CONTEXT * 0, image=images, **pooled, **common()).images
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    large = {**common(), "height": 32, "width": 32, "method": HiDiffusion()}
    assert ours(context=CONTEXT, control_image=PICTURES[:1], **({"pooled_context": POOLED} if xl else {}), **large)


def test_a_control_picture_of_another_aspect_ratio_is_stretched_with_a_note() -> None:
    ours, _ = pair(count=1)
    options = {**common(), "num_inference_steps": 1, "context": CONTEXT}
    stretched = "`control_image` is 16x32, another aspect ratio than the result's 16x16, to which it was stretched."
    assert ours(control_image=[torch.rand(3, 16, 32)], **options).notes == [stretched]
    assert ours(control_image=PICTURES[:1], **options).notes == []


@pytest.mark.parametrize("method", [MultiDiffusion(), HiDiffusion()], ids=repr)
def test_the_same_net_twice_at_half_the_scale_is_one_net(method) -> None:
    ours, _ = pair(count=2)
    net = ours.controlnet.nets[0]
    one = SeeCoderPipeline(ours.vae, ours.unet, ours.scheduler, controlnet=net)
    two = SeeCoderPipeline(ours.vae, ours.unet, ours.scheduler, controlnet=[net, net])
    options = {**common(), "height": 32, "width": 32, "context": CONTEXT, "method": method}
    single = one(control_image=PICTURES[0], **{**options, "generator": torch.Generator().manual_seed(0)}).images
    options["generator"] = torch.Generator().manual_seed(0)
    both = two(control_image=[PICTURES[0]] * 2, controlnet_conditioning_scale=0.5, **options).images
    torch.testing.assert_close(both, single, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"there is a `controlnet` but no `control_image`"),
        ({"control_image": PICTURES[0]}, r"`control_image` must be a list of 2 entries, one for every network"),
        ({"control_image": PICTURES[:1]}, r"`control_image` must be a list of 2 entries"),
        (
            {"control_image": PICTURES, "controlnet_conditioning_scale": [1.0] * 3},
            r"`controlnet_conditioning_scale`=\[1.0, 1.0, 1.0\] must be one number, or 2: one for every network",
        ),
        (
            {"control_image": PICTURES, "control_guidance_end": [1.0, 1.5]},
            r"`control_guidance_end`=\[1.0, 1.5\] must be a number from 0 to 1 or a list with one for every network",
        ),
        (
            {"control_image": PICTURES, "control_guidance_start": [0.2, 0.6], "control_guidance_end": [0.5, 0.5]},
            r"`control_guidance_start`=0.6 must not lie after `control_guidance_end`=0.5",
        ),
    ],
)
def test_what_does_not_go_with_the_nets_is_refused(options, message) -> None:
    ours, _ = pair(count=2)
    with pytest.raises(ValueError, match=message):
        ours(context=CONTEXT, **options)


def test_spans_are_of_the_steps_that_a_strength_leaves_as_in_the_stock_pipeline() -> None:
    ours, stock = pair(count=1)
    image_to_image = diffusers.StableDiffusionControlNetImg2ImgPipeline(
        **stock.components, requires_safety_checker=False
    )
    image_to_image.set_progress_bar_config(disable=True)
    start = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        latents = ours.vae.encode(start[None] * 2 - 1).latent_dist.mode() * ours.vae.config.scaling_factor
    options = {**common(), "strength": 0.6, "control_guidance_end": 0.4}
    want = image_to_image(
        prompt_embeds=CONTEXT,
        negative_prompt_embeds=CONTEXT * 0,
        image=latents,
        control_image=[PICTURES[0][None]],
        controlnet_conditioning_scale=[1.0],
        **options,
    ).images
    given = {"context": CONTEXT, "start_image": start, "control_image": PICTURES[:1]}
    got = ours(**given, **{**options, "generator": torch.Generator().manual_seed(0)}).images
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    options |= {"generator": torch.Generator().manual_seed(0), "controlnet_conditioning_scale": 0.0}
    assert (ours(**given, **options).images - got).abs().max() > 1e-3


def test_a_t2i_adapter_runs_once_for_a_picture() -> None:
    adapter = build_t2i_adapter()
    pipe = SeeCoderPipeline(build_vae(), build_unet(), build_scheduler(), adapter=adapter)
    pipe.set_progress_bar_config(disable=True)
    runs = []
    adapter.register_forward_hook(lambda *given: runs.append(1))
    for pictures in (PICTURES[:1], PICTURES):
        pipe(context=CONTEXT.expand(len(pictures), -1, -1), adapter_image=pictures, **common())
    assert len(runs) == 2


def test_a_t2i_adapter_runs_once_for_a_window_in_however_many_micro_batches() -> None:
    adapter = build_t2i_adapter()
    pipe = SeeCoderPipeline(build_vae(), build_unet(), build_scheduler(), adapter=adapter)
    pipe.set_progress_bar_config(disable=True)
    runs = []
    adapter.register_forward_hook(lambda *given: runs.append(1))
    # Five by five windows, a quarter of the native side apart, each in a micro-batch of its own, over five steps.
    options = common() | {"height": 32, "width": 32, "context": CONTEXT, "adapter_image": PICTURES[0]}
    options["method"] = MultiDiffusion(stride=2)
    one_by_one = pipe(**options, view_batch_size=1).images
    assert len(runs) == 25
    options["generator"] = torch.Generator().manual_seed(0)
    together = pipe(**options).images
    assert len(runs) == 25 + 2
    torch.testing.assert_close(one_by_one, together, atol=1e-4, rtol=0)


def test_adapters_of_the_published_families_go_with_their_own_base_alone() -> None:
    """What T2I-Adapters and UNets are published with, at a fortieth of the widths."""
    sd = {
        "block_out_channels": (8, 16, 32, 32),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    }
    sdxl = {
        "block_out_channels": (8, 16, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    }
    channels = [8, 16, 32, 32]
    adapters = {
        "sd": build_t2i_adapter(channels=channels, downscale_factor=8),
        "sdxl": build_t2i_adapter(channels=channels, downscale_factor=16, adapter_type="full_adapter_xl"),
    }
    for family, unet in (("sd", build_unet(**sd)), ("sdxl", build_unet(**sdxl))):
        for other, adapter in adapters.items():
            if family == other:
                check_adapter(unet, 8, adapter)
            else:
                with pytest.raises(ValueError, match="Use a T2I-Adapter of this base's family"):
                    check_adapter(unet, 8, adapter)


@pytest.mark.parametrize("other", [{"downscale_factor": 4}, {"adapter_type": "light_adapter"}])
def test_adapters_that_do_not_go_together_are_refused_in_one_line(other) -> None:
    adapters = [build_t2i_adapter(), build_t2i_adapter(**other)]
    with pytest.raises(ValueError, match=r"^`adapter`: .* Use those of one family\.$"):
        SeeCoderPipeline(build_vae(), build_unet(), build_scheduler(), adapter=adapters)
