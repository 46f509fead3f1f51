"""Parts are compared with each other by their configurations, with the same sentences for a run and a plan."""

import logging

import pytest
import torch
from diffusers import ControlNetModel, MultiControlNetModel, UNetMotionModel

from seecoder import SeeCoderPipeline, SeeCoderXLPipeline
from seecoder.base_model.fit import check_parts, check_picture_size
from seecoder.base_model.known_bases import base_sizes
from seecoder.base_model.single_file import say_once
from tests.fixtures.pipelines import CONTEXT_DIM, build_encoder, build_scheduler, build_unet, build_vae

XL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 68}
HINT = {"conditioning_embedding_out_channels": (8, 16)}  # two levels, as the tiny VAE has
UNETS = {
    "unCLIP": ({"class_embed_type": "projection", "projection_class_embeddings_input_dim": 48}, "class_embed_type"),
    "upscaler by class": ({"num_class_embeds": 10}, "num_class_embeds"),
    "no classes": ({"num_class_embeds": 0}, "`num_class_embeds`=0 of the base's UNet must be null"),
    "labels by the timestep": ({"class_embeddings_concat": True}, "`class_embeddings_concat`=True .* must be null"),
    "Kolors": ({"encoder_hid_dim": 48, "encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim"),
    "even kernel": ({"conv_in_kernel": 2}, "`conv_in_kernel`=2 of the base's UNet must be odd"),
    "even kernel at the end": ({"conv_out_kernel": 4}, "`conv_out_kernel`=4 of the base's UNet must be odd"),
    "editing": ({"in_channels": 8}, "a picture to edit"),
    "depth": ({"in_channels": 5}, "a depth map"),
    "upscaler": ({"in_channels": 7}, "a small picture"),
    "other latents": ({"in_channels": 16, "out_channels": 16}, "`latent_channels`=4 of the VAE must be 16"),
    "two contexts": ({"cross_attention_dim": (32, 16)}, "must be one width"),
}


@pytest.mark.parametrize("kind", UNETS)
@pytest.mark.parametrize("xl", [False, True])
def test_unets_that_read_something_else_are_refused_when_the_pipeline_is_made(kind, xl):
    changes, message = UNETS[kind]
    if xl and "projection_class_embeddings_input_dim" in changes:
        pytest.skip("SDXL has this setting for itself")
    cls = SeeCoderXLPipeline if xl else SeeCoderPipeline
    unet = build_unet(**{**(XL if xl else {}), **changes})
    with pytest.raises(ValueError, match=message) as made:
        cls(build_vae(), unet, build_scheduler())
    with pytest.raises(ValueError, match=message) as planned:
        check_parts(dict(unet.config), dict(build_vae().config), training=True)
    assert str(made.value) == str(planned.value)


def test_an_inpainting_unet_makes_a_pipeline_and_no_training():
    unet, vae = build_unet(in_channels=9), build_vae()
    SeeCoderPipeline(vae, unet, build_scheduler())
    with pytest.raises(ValueError, match="it reads a mask and a masked picture"):
        check_parts(unet, vae, training=True)


def test_a_distilled_unet_is_sampled_and_not_trained_on():
    unet = build_unet(time_cond_proj_dim=8)
    check_parts(unet, build_vae())
    with pytest.raises(ValueError, match="`time_cond_proj_dim`=8 of the base's UNet must be null"):
        check_parts(unet, build_vae(), training=True)


def test_no_error_sends_from_one_pipeline_to_the_other_and_back():
    kandinsky = build_unet(addition_embed_type="image", encoder_hid_dim=32, encoder_hid_dim_type="image_proj")
    sentences = set()
    for cls in (SeeCoderPipeline, SeeCoderXLPipeline):
        with pytest.raises(ValueError, match="`addition_embed_type`='image'") as error:
            cls(build_vae(), kandinsky, build_scheduler())
        sentences.add(str(error.value))
    assert len(sentences) == 1
    for cls, unet, other in (
        (SeeCoderPipeline, build_unet(**XL), SeeCoderXLPipeline),
        (SeeCoderXLPipeline, build_unet(), SeeCoderPipeline),
    ):
        with pytest.raises(ValueError, match=f"use {other.__name__} for it"):
            cls(build_vae(), unet, build_scheduler())
        other(build_vae(), unet, build_scheduler())


def test_the_refiner_is_refused_by_name():
    sizes = base_sizes("stabilityai/stable-diffusion-xl-base-1.0")
    assert sizes is not None
    check_parts(sizes.unet, sizes.vae, encoder={"context_dim": 2048, "pooled_dim": 1280})
    refiner = {**sizes.unet, "cross_attention_dim": 1280, "projection_class_embeddings_input_dim": 2560}
    for expected in (None, "sd", "sdxl"):  # no pipeline sends it to the other
        with pytest.raises(ValueError, match="refiner"):
            check_parts(refiner, sizes.vae, expected=expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_channels": 16}, "`latent_channels`=16 of the VAE must be 4"),
        ({"in_channels": 1}, "`in_channels`=1 of the VAE must be 3"),
        ({"out_channels": 4}, "`out_channels`=4 of the VAE must be 3"),
    ],
)
def test_vaes_of_other_channels_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SeeCoderPipeline(build_vae(**changes), build_unet(), build_scheduler())


def test_networks_of_other_classes_are_refused():
    video = UNetMotionModel(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=32,
        num_attention_heads=2,
        motion_num_attention_heads=2,
    )
    with pytest.raises(ValueError, match="`unet`=UNetMotionModel must be UNet2DConditionModel"):
        SeeCoderPipeline(build_vae(), video, build_scheduler())
    union = {"_class_name": "ControlNetUnionModel"}
    with pytest.raises(
        ValueError, match=r"`controlnet`=ControlNetUnionModel must be ControlNetModel\. Use one made for"
    ):
        check_parts(build_unet(), build_vae(), controlnet=union)
    config = {**build_vae().config, "_class_name": "VQModel"}
    check_parts(build_unet(), config)
    with pytest.raises(ValueError, match="`vae`=VQModel must be AutoencoderKL"):
        check_parts(build_unet(), config, training=True)


def test_widths_that_differ_are_named_with_what_the_base_reads():
    sd, xl = base_sizes("stable-diffusion-v1-5/stable-diffusion-v1-5"), base_sizes("stabilityai/sdxl-turbo")
    assert sd is not None
    assert xl is not None
    check_parts(sd.unet, sd.vae, encoder={})
    check_parts(xl.unet, xl.vae, encoder={"context_dim": 2048, "pooled_dim": 1280})
    for base, encoder, message in (
        (xl, {"pooled_dim": 1280}, r"`context_dim`=768 of the encoder must be 2048, .* SDXL 2048"),
        (xl, {"context_dim": 2048}, "`pooled_dim`=None of the encoder must be 1280"),
        (sd, {"pooled_dim": 1280}, "`pooled_dim`=1280 of the encoder must be None"),
    ):
        with pytest.raises(ValueError, match=message):
            check_parts(base.unet, base.vae, encoder=encoder)


CONTROLNETS = {
    "another width": ({"cross_attention_dim": 48}, HINT, "`cross_attention_dim`=48 of the ControlNet must be 32"),
    "SDXL's": (XL, HINT, "`addition_embed_type`=text_time of the ControlNet must be None"),
    "other blocks": ({"block_out_channels": (8, 24)}, HINT, "`block_out_channels`=.* of the ControlNet"),
    "more layers": ({"layers_per_block": 2}, HINT, "`layers_per_block`=2 of the ControlNet must be 1"),
    "inpainting": ({"in_channels": 9}, HINT, "`in_channels`=9 of the ControlNet must be 4"),
    "other cells": ({}, {"conditioning_embedding_out_channels": (8,) * 4}, "2 pixels are one latent cell"),
    "six channels": ({}, {**HINT, "conditioning_channels": 6}, "`conditioning_channels`=6"),
}


@pytest.mark.parametrize("kind", CONTROLNETS)
def test_controlnets_of_another_base_are_refused(kind):
    changes, options, message = CONTROLNETS[kind]
    controlnet = ControlNetModel.from_unet(build_unet(**changes), **options)
    fitting = ControlNetModel.from_unet(build_unet(), **HINT)
    pipe = SeeCoderPipeline(build_vae(), build_unet(), build_scheduler(), controlnet=fitting)
    with pytest.raises(ValueError, match=message):
        pipe.controlnet = controlnet
    assert pipe.controlnet is fitting
    with pytest.raises(ValueError, match=message):
        check_parts(build_unet(), build_vae(), controlnet=MultiControlNetModel([fitting, controlnet]))


def test_a_part_that_replaces_another_is_compared_with_the_rest():
    pipe = SeeCoderPipeline(build_vae(), build_unet(), build_scheduler(), build_encoder())
    for name, part, message in (
        ("unet", build_unet(cross_attention_dim=24), f"`context_dim`={CONTEXT_DIM} of the encoder must be 24"),
        ("vae", build_vae(latent_channels=16), "`latent_channels`=16"),
        ("encoder", build_encoder(context_dim=24), "`context_dim`=24 of the encoder must be 32"),
        ("unet", build_unet(**XL), "`unet` is one of SDXL; use SeeCoderXLPipeline"),
    ):
        before = getattr(pipe, name)
        with pytest.raises(ValueError, match=message):
            setattr(pipe, name, part)
        with pytest.raises(ValueError, match=message):
            SeeCoderPipeline.from_pipe(pipe, **{name: part})
        assert getattr(pipe, name) is before
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    pipe.vae = build_vae(block_out_channels=(8, 8, 16), **kinds)
    assert pipe.vae_scale_factor == pipe.image_processor.config["vae_scale_factor"] == 4


def test_a_controlnet_in_another_dtype_is_refused_before_the_first_step():
    controlnet = ControlNetModel.from_unet(build_unet(), **HINT).half()
    pipe = SeeCoderPipeline(build_vae(), build_unet(), build_scheduler(), controlnet=controlnet)
    given = {"context": torch.zeros(1, 6, 32), "control_image": torch.zeros(3, 16, 16), "output_type": "latent"}
    with pytest.raises(ValueError, match=r"`controlnet` in torch\.float16 must be in torch\.float32"):
        pipe(**given, num_inference_steps=1)
    pipe.to(torch.float32)
    assert pipe(**given, num_inference_steps=1).images.shape == (1, 4, 8, 8)


def test_a_vae_scaled_for_the_other_family_is_said(caplog):
    say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        check_parts(build_unet(), build_vae(scaling_factor=0.13025))
        check_parts(build_unet(), build_vae(scaling_factor=0.13025))  # said once
        check_parts(build_unet(**XL), build_vae(scaling_factor=0.5))
    (record,) = caplog.records
    assert "`scaling_factor`=0.13025 of the VAE is that of SDXL" in record.getMessage()


def test_an_autoencoder_with_two_shifts_is_refused_before_anything_runs():
    vae = {**dict(build_vae().config), "shift_factor": 0.5, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    with pytest.raises(ValueError, match=r"`shift_factor`=0\.5 of the autoencoder must be null"):
        check_parts(build_unet(), vae)


@pytest.mark.parametrize("size", [(28, 64), (64, 28), (64, 66)])
def test_training_pictures_that_are_too_small_or_no_whole_cells_are_refused(size):
    vae = {"block_out_channels": (8, 8, 8)}
    check_picture_size(vae, 32, 36)
    with pytest.raises(ValueError, match="must be at least 32, and a multiple of 4"):
        check_picture_size(vae, *size)
