"""Every family with every feature under every method, and stock diffusers' latents where stock can do the same."""

import diffusers
import pytest
import torch
from diffusers.callbacks import SDXLControlnetCFGCutoffCallback
from torch.nn import functional

from seecoder import SeeCoderPipeline, SeeCoderXLPipeline
from seecoder.sampling import DemoFusion, HiDiffusion, MultiDiffusion, RectifiedHR, ScaleCrafter, SyncDiffusion
from seecoder.sampling.methods.multidiffusion import Region
from tests.fixtures.pipelines import (
    build_controlnet,
    build_ip_adapter,
    build_lora,
    build_scheduler,
    build_sdxl_unet,
    build_t2i_adapter,
    build_unet,
    build_vae,
)

STEPS = 2
FAMILIES = ("sd15", "sd21", "sdxl")
FEATURES = ("controlnet", "two controlnets", "lora", "t2i-adapter", "two t2i-adapters", "ip-adapter")
METHODS = (
    None,
    MultiDiffusion(),
    DemoFusion(),
    ScaleCrafter(),
    HiDiffusion(),
    RectifiedHR(switch_at=(0.5,)),
    SyncDiffusion(sync_threshold=1.0),
)
GENERATOR = torch.Generator().manual_seed(0)
CONTEXT, OTHER = torch.randn(2, 1, 6, 32, generator=GENERATOR)
POOLED, OTHER_POOLED = torch.randn(2, 1, 32, generator=GENERATOR)
PICTURES = list(torch.rand(2, 3, 32, 32, generator=GENERATOR))
EMBEDDINGS = torch.randn(1, 1, 24, generator=GENERATOR)


def parts_of(family):
    unet = build_sdxl_unet() if family == "sdxl" else build_unet()
    scheduler = build_scheduler(prediction_type="v_prediction" if family == "sd21" else "epsilon")
    return {"vae": build_vae(), "unet": unet, "scheduler": scheduler}


def with_feature(family, feature):
    """Parts with a feature, what is loaded into the pipeline, and the arguments of the call that go with it."""
    parts, load, arguments = parts_of(family), lambda pipe: None, {}
    if feature == "controlnet":
        parts["controlnet"], arguments = build_controlnet(parts["unet"]), {"control_image": PICTURES[0]}
    elif feature == "two controlnets":
        parts["controlnet"] = [build_controlnet(parts["unet"], seed) for seed in (4, 5)]
        arguments = {"control_image": PICTURES, "controlnet_conditioning_scale": [0.5, 1.0]}
    elif feature == "lora":

        def load(pipe):
            pipe.load_lora_weights(build_lora(pipe.unet, ("attn2.to_k", "conv1", "downsamplers.0.conv"), size=0.3))
    elif feature == "t2i-adapter":
        parts["adapter"], arguments = build_t2i_adapter(), {"adapter_image": PICTURES[0]}
    elif feature == "two t2i-adapters":
        parts["adapter"] = diffusers.MultiAdapter([build_t2i_adapter(seed) for seed in (5, 6)])
        arguments = {"adapter_image": PICTURES, "adapter_conditioning_scale": [0.5, 1.0]}
    elif feature == "ip-adapter":

        def load(pipe):
            pipe.load_ip_adapter(build_ip_adapter(pipe.unet), image_encoder_folder=None)

        arguments = {"ip_adapter_image_embeds": [torch.cat([EMBEDDINGS * 0, EMBEDDINGS])]}
    return parts, load, arguments


def pipeline(family, parts):
    pipe = (SeeCoderXLPipeline if family == "sdxl" else SeeCoderPipeline)(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe, method=None, side=32, **arguments):
    if isinstance(pipe, SeeCoderXLPipeline):
        arguments["pooled_context"] = POOLED
    given = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "latent", "method": method}
    generator = torch.Generator().manual_seed(0)
    return pipe(context=CONTEXT, height=side, width=side, generator=generator, **given, **arguments).images


@pytest.fixture(scope="module")
def plain():
    """The latents without any feature, by family and method."""
    return {
        (family, type(method)): latents(pipeline(family, parts_of(family)), method)
        for family in FAMILIES
        for method in METHODS
    }


@pytest.mark.heavy
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_feature_acts_under_every_method(family, feature, plain) -> None:
    parts, load, arguments = with_feature(family, feature)
    pipe = pipeline(family, parts)
    load(pipe)
    for method in METHODS:
        found = latents(pipe, method, **arguments)
        assert found.shape == (1, 4, 16, 16)
        assert torch.isfinite(found).all(), method
        assert (found - plain[family, type(method)]).abs().max() > 1e-3, method


@pytest.mark.parametrize("family", FAMILIES)
def test_regions_and_start_images_act(family, plain) -> None:
    pipe = pipeline(family, parts_of(family))
    pooled = OTHER_POOLED if family == "sdxl" else None
    mask = torch.zeros(32, 32)
    mask[:, 16:] = 1.0
    found = latents(pipe, MultiDiffusion(regions=[Region(mask, OTHER, pooled)]))
    assert (found - plain[family, MultiDiffusion]).abs().max() > 1e-3
    found = latents(pipe, DemoFusion(), start_image=PICTURES[0][:, :16, :16])
    assert (found - plain[family, DemoFusion]).abs().max() > 1e-3


STOCK = {
    "sd15": {"lora": "StableDiffusionPipeline", "ip-adapter": "StableDiffusionPipeline"},
    "sdxl": {"lora": "StableDiffusionXLPipeline", "ip-adapter": "StableDiffusionXLPipeline"},
}
for _feature in ("controlnet", "two controlnets"):
    STOCK["sd15"][_feature] = "StableDiffusionControlNetPipeline"
    STOCK["sdxl"][_feature] = "StableDiffusionXLControlNetPipeline"
for _feature in ("t2i-adapter", "two t2i-adapters"):
    STOCK["sd15"][_feature] = "StableDiffusionAdapterPipeline"
    STOCK["sdxl"][_feature] = "StableDiffusionXLAdapterPipeline"
STOCK["sd21"] = STOCK["sd15"]


def stock_latents(family, feature, parts, arguments, **more):
    """What diffusers' pipeline of the same networks makes at native size, of the same noise."""
    lacks = ["text_encoder", "tokenizer"]
    lacks += ["text_encoder_2", "tokenizer_2"] if family == "sdxl" else ["safety_checker", "feature_extractor"]
    stock = getattr(diffusers, STOCK[family][feature])(
        **parts, **dict.fromkeys(lacks), **({} if family == "sdxl" else {"requires_safety_checker": False})
    )
    stock.set_progress_bar_config(disable=True)
    given = dict(arguments)
    for name in ("control_image", "adapter_image"):
        if name in given:  # resized as ours are: by antialiased bicubic interpolation
            images = given.pop(name)
            small = functional.interpolate(torch.stack(PICTURES), size=16, mode="bicubic", antialias=True)
            given["image"] = [small[:1], small[1:]] if isinstance(images, list) else small[:1]
    if family == "sdxl":
        given |= {"pooled_prompt_embeds": POOLED, "negative_pooled_prompt_embeds": POOLED * 0}
    return stock(
        prompt_embeds=CONTEXT,
        negative_prompt_embeds=CONTEXT * 0,
        height=16,
        width=16,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
        **given,
        **more,
    ).images


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("family", FAMILIES)
def test_native_latents_are_those_of_stock_pipelines(family, feature) -> None:
    parts, load, arguments = with_feature(family, feature)
    pipe = pipeline(family, parts)
    load(pipe)
    ours = latents(pipe, side=16, **arguments)
    torch.testing.assert_close(ours, stock_latents(family, feature, parts, arguments), atol=1e-4, rtol=0)


def test_guidance_ends_beside_a_controlnet_as_in_the_stock_pipeline() -> None:
    parts, _, arguments = with_feature("sdxl", "controlnet")
    pipe = pipeline("sdxl", parts)
    cutoff = SDXLControlnetCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0)
    ours = latents(pipe, side=16, callback_on_step_end=cutoff, **arguments)
    wanted = stock_latents("sdxl", "controlnet", parts, arguments, callback_on_step_end=cutoff)
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=0)
    assert (ours - latents(pipe, side=16, **arguments)).abs().max() > 1e-3
    with pytest.raises(ValueError, match="changed `image`, of which only rows may be cut off"):
        latents(
            pipe,
            side=16,
            callback_on_step_end=lambda *given: {"image": given[-1]["image"] * 0},
            callback_on_step_end_tensor_inputs=["image"],
            **arguments,
        )
    with pytest.raises(ValueError, match="`image` is what a ControlNet sees, and there is none"):
        latents(pipeline("sdxl", parts_of("sdxl")), side=16, callback_on_step_end=cutoff)
