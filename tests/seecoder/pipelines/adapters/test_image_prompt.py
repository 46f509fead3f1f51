"""IP-Adapter beside our context."""

import diffusers
import pytest
import torch
from diffusers.callbacks import IPAdapterScaleCutoffCallback
from safetensors.torch import save_file
from transformers import CLIPImageProcessor

from seecoder import SeeCoderPipeline
from seecoder.images.saving import to_pil
from seecoder.sampling import HiDiffusion
from seecoder.weights.safetensors_files import WeightsError
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
    cutoff = IPAdapterScaleCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0)
    cut = latents(pipe, ip_adapter_image=PICTURE, callback_on_step_end=cutoff)
    pipe.set_ip_adapter_scale(1.0)
    given = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent", "height": 16, "width": 16}
    want = stock(
        prompt_embeds=CONTEXT[:1],
        negative_prompt_embeds=CONTEXT[:1] * 0,
        ip_adapter_image_embeds=embeds,
        generator=torch.Generator().manual_seed(0),
        callback_on_step_end=cutoff,
        **given,
    ).images
    torch.testing.assert_close(cut, want, atol=1e-5, rtol=0)
    assert (cut - ours).abs().max() > 1e-3
    pipe.set_ip_adapter_scale(0.0)
    assert (latents(pipe, ip_adapter_image=PICTURE) - cut).abs().max() > 1e-3


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


def without(adapter, key):
    return {part: {name: value for name, value in named.items() if name != key} for part, named in adapter.items()}


@pytest.mark.parametrize("lost", ["1.to_k_ip.weight", "norm.bias", "proj.weight"])
def test_an_adapter_that_does_not_fit_leaves_the_pipeline_as_it_was(lost) -> None:
    pipe = pipeline(loaded=False)
    with pytest.raises(WeightsError, match=r"is no IP-Adapter for this base's UNet .*Use one of its family"):
        pipe.load_ip_adapter(without(build_ip_adapter(pipe.unet), lost), weight_name="x", image_encoder_folder=None)
    torch.testing.assert_close(latents(pipe), latents(pipeline(loaded=False)))


def test_files_that_are_not_there_or_something_else_are_told_in_one_line(tmp_path) -> None:
    pipe = pipeline(loaded=False)
    (tmp_path / "page.safetensors").write_text("<html>")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name, error, reason in (
        ("nothere", FileNotFoundError, "no file named nothere.safetensors"),
        ("page", WeightsError, "header"),
        ("other", WeightsError, "is no IP-Adapter for this base's UNet"),
    ):
        with pytest.raises(error, match=reason) as raised:
            pipe.load_ip_adapter(tmp_path, weight_name=f"{name}.safetensors", image_encoder_folder=None)
        assert "\n" not in str(raised.value)


def test_embeddings_that_the_adapter_does_not_read_are_refused_before_the_first_step() -> None:
    pipe = pipeline()
    pipe.unet.forward = None  # nothing may be computed
    for shape in ((2, 1, 20), (2, 24)):
        with pytest.raises(ValueError, match=r"of shapes \[\(.*\)\] do not fit \['ImageProjection'\]"):
            latents(pipe, ip_adapter_image_embeds=[torch.zeros(shape)])
    pipe = pipeline(encoder=build_image_encoder(), loaded=False)
    pipe.load_ip_adapter(build_face_adapter(pipe.unet))
    with pytest.raises(ValueError, match="FaceID reads embeddings of faces, and no pictures"):
        latents(pipe, ip_adapter_image=PICTURE)


def build_face_adapter(unet):
    """An adapter that reads embeddings of faces, 16 numbers each, with a LoRA, in the layout of the released files."""
    adapter, generator = build_ip_adapter(unet), torch.Generator().manual_seed(8)
    sizes = {"proj.0.weight": (32, 16), "proj.0.bias": (32,), "proj.2.weight": (128, 32), "proj.2.bias": (128,)}
    sizes |= {"norm.weight": (32,), "norm.bias": (32,)}
    adapter["image_proj"] = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    for place, name in enumerate(unet.attn_processors):
        layer = unet.get_submodule(name.removesuffix(".processor"))
        for part, linear in (("q", layer.to_q), ("k", layer.to_k), ("v", layer.to_v), ("out", layer.to_out[0])):
            shapes = {"down": (4, linear.in_features), "up": (linear.out_features, 4)}
            for half, shape in shapes.items():
                adapter["ip_adapter"][f"{place}.to_{part}_lora.{half}.weight"] = torch.randn(shape, generator=generator)
    return adapter


def test_a_face_adapter_reads_embeddings_and_takes_its_lora_with_it_when_it_goes() -> None:
    pytest.importorskip("peft")
    pipe = pipeline(loaded=False)
    pipe.load_ip_adapter(build_face_adapter(pipe.unet), image_encoder_folder=None)
    assert pipe.get_active_adapters() == ["faceid_0"]
    assert latents(pipe, ip_adapter_image_embeds=[torch.ones(2, 1, 16)]).isfinite().all()
    pipe.unload_ip_adapter()
    assert pipe.get_list_adapters() == {}
    torch.testing.assert_close(latents(pipe), latents(pipeline(loaded=False)))


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
