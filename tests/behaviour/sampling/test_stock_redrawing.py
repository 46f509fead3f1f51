"""Image to image and inpainting are those of stock diffusers, and hold under every method."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)

from seecoder import SeeCoderPipeline, SeeCoderXLPipeline
from seecoder.sampling import DemoFusion, HiDiffusion, MultiDiffusion, RectifiedHR, ScaleCrafter, SyncDiffusion
from seecoder.sampling.methods.perceptual import pyramid_distance

POOLED = 20
XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": POOLED + 6 * 8,
}
STOCK = {
    ("sd", "image"): StableDiffusionImg2ImgPipeline,
    ("sd", "mask"): StableDiffusionInpaintPipeline,
    ("sdxl", "image"): StableDiffusionXLImg2ImgPipeline,
    ("sdxl", "mask"): StableDiffusionXLInpaintPipeline,
}
SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {}),
    "ddim_v": (DDIMScheduler, {"prediction_type": "v_prediction"}),
    "euler": (EulerDiscreteScheduler, {}),
    "dpm": (DPMSolverMultistepScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
}
STEPS = 5
SIDE = 16


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


@pytest.fixture
def start() -> torch.Tensor:
    """A picture to redraw, (3, 16, 16)."""
    return torch.rand((3, SIDE, SIDE), generator=seeded(7))


@pytest.fixture
def mask() -> torch.Tensor:
    """A mask whose border does not lie on the borders of latent cells, (16, 16)."""
    drawn = torch.zeros(SIDE, SIDE)
    drawn[3:11, 5:] = 1.0
    return drawn


@pytest.fixture
def make_pipe(parts: dict[str, Any], build: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    def make(family: str = "sd", scheduler: str = "ddim", channels: int = 4) -> Any:
        cls, options = SCHEDULERS[scheduler]
        unet = build["unet"](in_channels=channels, **(XL if family == "sdxl" else {}))
        replaced = {"unet": unet, "scheduler": cls.from_config(parts["scheduler"].config, **options), "encoder": None}
        pipe = (SeeCoderXLPipeline if family == "sdxl" else SeeCoderPipeline)(**{**parts, **replaced})
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


def context_of(family: str, count: int = 1) -> dict[str, torch.Tensor]:
    given = {"context": torch.randn((count, 6, 32), generator=seeded(3))}
    return given | ({"pooled_context": torch.randn((count, POOLED), generator=seeded(4))} if family == "sdxl" else {})


def stock_latents(pipe: Any, family: str, kind: str, given: dict[str, torch.Tensor], **settings: Any) -> torch.Tensor:
    """What stock diffusers makes of the same networks."""
    absent = dict.fromkeys(("text_encoder", "tokenizer"))
    absent |= dict.fromkeys(
        ("text_encoder_2", "tokenizer_2") if family == "sdxl" else ("safety_checker", "feature_extractor")
    )
    absent |= {"add_watermarker": False} if family == "sdxl" else {"requires_safety_checker": False}
    stock: Any = STOCK[family, kind](vae=pipe.vae, unet=pipe.unet, scheduler=pipe.scheduler, **absent)
    stock.set_progress_bar_config(disable=True)
    embeds = {"prompt_embeds": given["context"], "negative_prompt_embeds": torch.zeros_like(given["context"])}
    if family == "sdxl":
        pooled = given["pooled_context"]
        embeds |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": torch.zeros_like(pooled)}
    return stock(**embeds, num_inference_steps=STEPS, guidance_scale=3.0, output_type="latent", **settings).images


def latents_of(pipe: Any, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return pipe.vae.encode(pixels[None] * 2 - 1).latent_dist.mode() * pipe.vae.config.scaling_factor


def made(pipe: Any, family: str = "sd", **settings: Any) -> torch.Tensor:
    common = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "latent", "generator": seeded()}
    given = context_of(family)
    return pipe(**given, **{**common, **settings}).images


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.3, 0.75])
def test_image_to_image_is_that_of_stock_diffusers(make_pipe, start, scheduler, strength):
    pipe = make_pipe(scheduler=scheduler)
    # Latents, so that stock draws no number for the encoder's posterior.
    given = {"image": latents_of(pipe, start), "strength": strength, "generator": seeded()}
    theirs = stock_latents(pipe, "sd", "image", context_of("sd"), **given)
    ours = made(pipe, start_image=start, strength=strength)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpainting_by_blending_is_that_of_stock_diffusers(make_pipe, start, mask, scheduler, strength):
    pipe = make_pipe(scheduler=scheduler)
    image = latents_of(pipe, start)
    theirs = stock_latents(
        pipe, "sd", "mask", context_of("sd"), image=image, masked_image_latents=image, mask_image=mask[None],
        strength=strength, generator=seeded(), height=SIDE, width=SIDE,
    )  # fmt: skip
    ours = made(pipe, start_image=start, mask_image=mask, strength=strength)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_an_inpainting_unet_is_told_what_stock_tells_it(make_pipe, start, mask, family, strength):
    pipe = make_pipe(family, channels=9)
    hidden = latents_of(pipe, torch.where(mask[None] > 0.5, 0.5, start))
    theirs = stock_latents(
        pipe, family, "mask", context_of(family), image=latents_of(pipe, start), masked_image_latents=hidden,
        mask_image=mask[None], strength=strength, generator=seeded(), height=SIDE, width=SIDE,
    )  # fmt: skip
    ours = made(pipe, family, start_image=start, mask_image=mask, strength=strength)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_the_same_holds_for_sdxl(make_pipe, start, mask, kind):
    pipe = make_pipe("sdxl", "euler")
    image = latents_of(pipe, start)
    masked = {"masked_image_latents": image, "mask_image": mask[None], "height": SIDE, "width": SIDE}
    given = {"image": image, "strength": 0.6, "generator": seeded(), **(masked if kind == "mask" else {})}
    theirs = stock_latents(pipe, "sdxl", kind, context_of("sdxl"), **given)
    ours = made(pipe, "sdxl", start_image=start, strength=0.6, mask_image=mask if kind == "mask" else None)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


def test_at_strength_one_nothing_of_the_picture_is_left(make_pipe, start):
    pipe = make_pipe()
    assert torch.equal(made(pipe, start_image=start, strength=1.0), made(pipe))


METHODS = {
    "plain": None,
    "multidiffusion": MultiDiffusion(stride=4),
    "demofusion": DemoFusion(),
    "rectifiedhr": RectifiedHR(switch_at=(0.6, 0.8)),
    "scalecrafter": ScaleCrafter(),
    "hidiffusion": HiDiffusion(),
    "syncdiffusion": SyncDiffusion(stride=4, loss=pyramid_distance),
    "composed": [ScaleCrafter(), RectifiedHR(switch_at=(0.6, 0.8))],
}


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("name", METHODS)
def test_what_a_mask_keeps_is_kept_under_every_method(make_pipe, name, channels):
    pipe, side = make_pipe(channels=channels), 2 * SIDE
    start = torch.rand((3, side, side), generator=seeded(7))
    mask = torch.zeros(side, side)
    mask[5:20, 11:] = 1.0
    settings = {"height": side, "width": side, "method": METHODS[name], "start_image": start, "output_type": "pt"}
    found = made(pipe, **settings, mask_image=mask)[0]
    assert torch.equal(found[:, mask == 0], start[:, mask == 0])
    assert (found - start)[:, mask == 1].abs().max() > 0.05
    white = made(pipe, **settings, mask_image=torch.ones(side, side))
    if channels == 4:
        assert torch.equal(white, made(pipe, **settings, strength=1.0))
    else:
        assert torch.isfinite(white).all()


@pytest.mark.parametrize("name", METHODS)
def test_the_strength_says_how_much_is_redrawn_under_every_method(make_pipe, name):
    pipe, side = make_pipe(), 2 * SIDE
    start = torch.full((3, side, side), 0.5)
    start[:, 8:24, 8:24] = 0.1
    settings = {"height": side, "width": side, "method": METHODS[name], "start_image": start, "num_inference_steps": 10}
    target = latents_of(pipe, start)
    distances = [float((made(pipe, **settings, strength=strength) - target).std()) for strength in (0.1, 0.9)]
    assert distances[0] < 0.7 * distances[1]


def test_a_batch_of_results_is_redrawn_from_one_picture(make_pipe, start, mask):
    pipe = make_pipe()
    settings = {"num_inference_steps": STEPS, "start_image": start, "mask_image": mask, "output_type": "pt"}
    given = context_of("sd", 2)["context"]
    both = pipe(context=given, generator=[seeded(1), seeded(2)], **settings).images
    alone = pipe(context=given[1:], generator=[seeded(2)], **settings).images
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=0)
