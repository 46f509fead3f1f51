"""IP-Adapter beside our context."""

import diffusers
import pytest
import torch
from transformers import CLIPImageProcessor

from seecoder import SeeCoderPipeline
from seecoder.images.saving import to_pil
from seecoder.sampling import HiDiffusion
from tests.fixtures.pipelines import (
    build_image_encoder,
    build_ip_adapter,
    build_scheduler,
    build_unet,
    build_vae,
)

CONTEXT = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0))
PICTURE = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(1))


def pipeline(*, loaded=True, encoder=None):
    parts = {"image_encoder": encoder, "feature_extractor": CLIPImageProcessor(size=32, crop_size=32)}
    pipe = SeeCoderPipeline(build_vae(), build_unet(), build_scheduler(), **(parts if encoder else {}))
    pipe.set_progress_bar_config(disable=True)
    if loaded:
        pipe.load_ip_adapter(build_ip_adapter(pipe.unet), image_encoder_folder=None)
    return pipe


def latents(pipe, rows=slice(0, 1), **options):
    generator = [torch.Generator().manual_seed(seed) for seed in range(len(CONTEXT[rows]))]
    given = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent", **options}
    return pipe(context=CONTEXT[rows], generator=generator, **given).images


def test_pictures_are_embedded_as_the_stock_pipeline_does() -> None:
    pipe = pipeline(encoder=build_image_encoder())
    stock = diffusers.StableDiffusionPipeline(
        **{name: getattr(pipe, name) for name in ("vae", "unet", "image_encoder", "feature_extractor")},
        scheduler=build_scheduler(),
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        requires_safety_checker=False,
    )
    embeds = stock.prepare_ip_adapter_image_embeds([to_pil(PICTURE)], None, "cpu", 1, True)
    own = pipe.prepare_ip_adapter_image_embeds([to_pil(PICTURE)], None, "cpu", 1, True)
    torch.testing.assert_close(own, embeds)
    ours = latents(pipe, ip_adapter_image=PICTURE)
    torch.testing.assert_close(ours, latents(pipe, ip_adapter_image_embeds=embeds), atol=1e-5, rtol=0)
    pipe.set_ip_adapter_scale(0.0)
    assert (latents(pipe, ip_adapter_image=PICTURE) - ours).abs().max() > 1e-3


def test_every_result_can_have_embeddings_of_its_own() -> None:
    pipe = pipeline()
    embeds = torch.randn(2, 1, 24, generator=torch.Generator().manual_seed(2))
    both = torch.cat([embeds * 0, embeds])
    together = latents(pipe, slice(0, 2), ip_adapter_image_embeds=[both])
    second = torch.cat([embeds[1:] * 0, embeds[1:]])
    alone = pipe(
        context=CONTEXT[1:],
        generator=[torch.Generator().manual_seed(1)],
        num_inference_steps=2,
        guidance_scale=3.0,
        output_type="latent",
        ip_adapter_image_embeds=[second],
    ).images
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=0)


def test_without_its_adapter_the_network_is_the_plain_one() -> None:
    pipe = pipeline()
    with pytest.raises(ValueError, match="the UNet holds an adapter"):
        pipe.save_pretrained("never-written")
    pipe.unload_ip_adapter()
    torch.testing.assert_close(latents(pipe), latents(pipeline(loaded=False)))


@pytest.mark.parametrize(
    ("loaded", "options", "message"),
    [
        (False, {"ip_adapter_image": PICTURE}, "`ip_adapter_image` has no effect: no IP-Adapter is loaded"),
        (True, {}, "there is neither `ip_adapter_image` nor `ip_adapter_image_embeds`"),
        (True, {"ip_adapter_image": PICTURE}, "`ip_adapter_image` needs the adapter's image encoder"),
        (True, {"ip_adapter_image_embeds": [torch.zeros(2, 1, 24)] * 2}, "has 2 entries for 1 IP-Adapters"),
        (True, {"ip_adapter_image_embeds": [torch.zeros(6, 1, 24)]}, "has 3 rows; give 1"),
        (
            True,
            {
                "ip_adapter_image_embeds": [torch.zeros(2, 1, 24)],
                "cross_attention_kwargs": {"ip_adapter_masks": [torch.ones(1, 1, 16, 16)]},
                "method": HiDiffusion(),
            },
            "`ip_adapter_masks` lie over the whole result",
        ),
    ],
)
def test_image_prompts_that_do_not_go_with_the_pipeline_are_refused(loaded, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        latents(pipeline(loaded=loaded), **options)


def test_pickles_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`weight_name`=ip-adapter_sd15.bin must be a safetensors file"):
        pipeline(loaded=False).load_ip_adapter("folder", weight_name="ip-adapter_sd15.bin")


def test_embeddings_for_a_distilled_model_hold_no_negative_rows() -> None:
    pipe = SeeCoderPipeline(build_vae(), build_unet(time_cond_proj_dim=16), build_scheduler())
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(build_ip_adapter(pipe.unet), image_encoder_folder=None)
    embeds = torch.randn(2, 1, 24, generator=torch.Generator().manual_seed(2))
    both = latents(pipe, slice(0, 2), ip_adapter_image_embeds=[embeds])
    first = latents(pipe, ip_adapter_image_embeds=[embeds[:1]])
    torch.testing.assert_close(both[:1], first, atol=1e-5, rtol=0)
