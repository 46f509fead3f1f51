"""The pipeline on tiny real components: parity with diffusers, determinism, and that nothing shared is changed."""

import copy

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    VQModel,
)

from seecoder import SeeCoderPipeline
from seecoder.images.gate import ImageError
from seecoder.images.saving import save_image
from seecoder.sampling import DemoFusion, MultiDiffusion
from seecoder.sampling.methods.registry import build_methods

STEPS = 2


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def state_of(pipe):
    return {
        f"{name}.{key}": value.clone()
        for name in ("unet", "vae", "encoder")
        for key, value in getattr(pipe, name).state_dict().items()
    }


def test_stock_pipeline_accepts_the_context_and_gives_the_same_picture(pipe, make):
    context = pipe.encode_context(torch.full((3, 40, 48), 0.3))
    stock = StableDiffusionPipeline(
        **{name: getattr(pipe, name) for name in ("vae", "unet", "scheduler")},
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    stock.set_progress_bar_config(disable=True)
    for scale in (1.0, 2.0):
        theirs = stock(
            prompt_embeds=context,
            negative_prompt_embeds=torch.zeros_like(context),
            num_inference_steps=3,
            guidance_scale=scale,
            guidance_rescale=0.0,
            height=16,
            width=16,
            generator=seeded(),
            output_type="pt",
        ).images
        ours = make(context=context, num_inference_steps=3, guidance_scale=scale)
        assert torch.equal(ours, theirs)


def test_stock_controlnet_pipeline_gives_the_same_picture(parts, tiny_controlnet):
    pipe = SeeCoderPipeline(**parts, controlnet=tiny_controlnet)
    pipe.set_progress_bar_config(disable=True)
    stock = StableDiffusionControlNetPipeline(
        **{name: parts[name] for name in ("vae", "unet", "scheduler")},
        controlnet=tiny_controlnet,
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    stock.set_progress_bar_config(disable=True)
    context = pipe.encode_context(torch.full((3, 40, 48), 0.3))
    hint = torch.rand((3, 16, 16), generator=seeded(5))
    common = {"num_inference_steps": STEPS, "guidance_scale": 2.0, "height": 16, "width": 16, "output_type": "pt"}
    theirs = stock(
        prompt_embeds=context,
        negative_prompt_embeds=torch.zeros_like(context),
        image=hint[None],
        controlnet_conditioning_scale=0.7,
        generator=seeded(),
        **common,
    ).images
    ours = pipe(
        context=context, control_image=hint, controlnet_conditioning_scale=0.7, generator=seeded(), **common
    ).images
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    without = pipe(
        context=context, control_image=hint, controlnet_conditioning_scale=0.0, generator=seeded(), **common
    ).images
    assert (ours - without).abs().max() > 1e-3
    # Outside its range the ControlNet is as good as absent.
    early = pipe(context=context, control_image=hint, control_guidance_end=0.0, generator=seeded(), **common).images
    torch.testing.assert_close(early, without, atol=1e-6, rtol=0)


def test_a_call_changes_no_component_and_calls_are_repeatable(pipe, make):
    before, schedule = state_of(pipe), copy.deepcopy(pipe.scheduler.__dict__)
    first, second = make(), make()
    assert torch.equal(first, second)
    assert all(torch.equal(value, before[name]) for name, value in state_of(pipe).items())
    assert str(pipe.scheduler.__dict__) == str(schedule)


def test_different_seeds_and_pictures_give_different_results(make, picture):
    assert not torch.equal(make(), make(generator=seeded(1)))
    assert not torch.equal(make(), make(image=1 - picture))


def test_a_batch_is_what_its_pictures_are_alone(make, picture):
    together = make(image=[picture, 1 - picture], generator=[seeded(1), seeded(2)])
    torch.testing.assert_close(together[:1], make(generator=seeded(1)), atol=1e-5, rtol=0)
    torch.testing.assert_close(together[1:], make(image=1 - picture, generator=seeded(2)), atol=1e-5, rtol=0)


def test_several_results_of_one_picture_stand_next_to_each_other(make, picture):
    four = make(image=[picture, 1 - picture], num_images_per_prompt=2, generator=[seeded(i) for i in range(4)])
    assert four.shape == (4, 3, 16, 16)
    torch.testing.assert_close(four[1:2], make(generator=seeded(1)), atol=1e-5, rtol=0)
    torch.testing.assert_close(four[2:3], make(image=1 - picture, generator=seeded(2)), atol=1e-5, rtol=0)


def test_context_scale_zero_is_unconditional(make, pipe):
    nothing = torch.zeros(1, 6, 32)
    torch.testing.assert_close(make(context_scale=0.0), make(context=nothing, guidance_scale=1.0), atol=1e-5, rtol=0)
    assert (make(context_scale=0.5) - make()).abs().max() > 1e-4


def test_guidance_one_runs_half_the_batch(pipe, make):
    rows = []
    handle = pipe.unet.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    make(guidance_scale=1.0)
    make(guidance_scale=2.0)
    handle.remove()
    assert rows == [1] * STEPS + [2] * STEPS


def test_negative_context_takes_the_place_of_zeros(pipe, make, picture):
    own = pipe.encode_context(picture)
    # Guidance between a context and itself is no guidance.
    torch.testing.assert_close(make(negative_context=own), make(guidance_scale=1.0), atol=1e-5, rtol=0)


def test_output_types_are_one_picture(pipe, make, picture):
    pixels = make()
    array = make(output_type="np")
    torch.testing.assert_close(torch.from_numpy(array).permute(0, 3, 1, 2), pixels, atol=1e-6, rtol=0)
    image = make(output_type="pil")[0]
    assert image.size == (16, 16)
    latents = make(output_type="latent")
    assert latents.shape == (1, 4, 8, 8)
    decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    torch.testing.assert_close((decoded / 2 + 0.5).clamp(0, 1), pixels, atol=1e-6, rtol=0)
    images, notes = pipe(picture, num_inference_steps=1, return_dict=False)
    assert len(images) == 1
    assert notes == []


def test_size_defaults_to_the_training_size_and_may_be_any_multiple(make):
    assert make().shape[-2:] == (16, 16)
    assert make(height=20, width=34).shape[-2:] == (20, 34)


def test_pictures_come_in_through_the_one_door(make, picture, tmp_path):
    save_image(picture, tmp_path / "picture.png")
    torch.testing.assert_close(make(image=str(tmp_path / "picture.png")), make(image=tmp_path / "picture.png"))
    with pytest.raises(ImageError, match=r"missing\.png"):
        make(image=tmp_path / "missing.png")


def test_given_latents_replace_drawn_noise(make):
    noise = torch.randn((1, 4, 8, 8), generator=seeded())
    torch.testing.assert_close(make(latents=noise, generator=None), make())


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside diffusers
def test_other_schedulers_and_v_prediction(parts, picture):
    for scheduler in (
        EulerDiscreteScheduler.from_config(parts["scheduler"].config),
        DDIMScheduler.from_config(parts["scheduler"].config, prediction_type="v_prediction"),
    ):
        pipe = SeeCoderPipeline(**{**parts, "scheduler": scheduler})
        pipe.set_progress_bar_config(disable=True)
        pixels = pipe(picture, num_inference_steps=STEPS, output_type="pt").images
        assert torch.isfinite(pixels).all()


METHODS = ["demofusion", "hidiffusion", "multidiffusion", "rectifiedhr", "scalecrafter", "syncdiffusion"]


@pytest.mark.parametrize("names", [*METHODS, "demofusion,scalecrafter", "multidiffusion,syncdiffusion"])
@pytest.mark.parametrize("size", [(32, 32), (16, 64)])
def test_every_method_runs_and_does_something(pipe, make, names, size):
    before = state_of(pipe)
    height, width = size
    plain = make(height=height, width=width, num_inference_steps=4)
    found = make(height=height, width=width, num_inference_steps=4, method=build_methods(names))
    assert found.shape == (1, 3, height, width)
    assert torch.isfinite(found).all()
    assert (found - plain).abs().max() > 1e-3
    assert all(torch.equal(value, before[name]) for name, value in state_of(pipe).items())


def test_windows_at_once_change_nothing(make):
    windows = make(height=32, width=32, method=MultiDiffusion())
    one_by_one = make(height=32, width=32, method=MultiDiffusion(), view_batch_size=1)
    torch.testing.assert_close(one_by_one, windows, atol=1e-4, rtol=0)


def test_a_start_image_takes_the_place_of_noise(make):
    dark, bright = (
        make(height=32, width=32, method=DemoFusion(), start_image=torch.full((3, 16, 16), level))
        for level in (0.0, 1.0)
    )
    assert dark.shape[-2:] == (32, 32)
    assert (dark - bright).abs().max() > 1e-3


def test_a_vector_quantised_first_stage(parts, picture):
    torch.manual_seed(0)
    vae = VQModel(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        num_vq_embeddings=16,
    ).eval()
    pipe = SeeCoderPipeline(**{**parts, "vae": vae})
    pipe.set_progress_bar_config(disable=True)
    pixels = pipe(picture, num_inference_steps=1, output_type="pt").images
    assert pixels.shape == (1, 3, 16, 16)
    enlarged = pipe(picture, 32, 32, num_inference_steps=2, method=DemoFusion(), start_image=picture[:, :40, :40])
    assert enlarged.images[0].size == (32, 32)


def test_a_base_of_another_shape(parts, build, picture):
    pipe = SeeCoderPipeline(**{**parts, "unet": build["unet"](sample_size=(8, 12))})
    pipe.set_progress_bar_config(disable=True)
    assert pipe(picture, num_inference_steps=1, output_type="pt").images.shape == (1, 3, 16, 24)


def test_parts_that_do_not_fit_are_refused(parts, build):
    with pytest.raises(ValueError, match="`context_dim`=24 of the encoder must be 32"):
        SeeCoderPipeline(**{**parts, "encoder": build["encoder"](context_dim=24)})
    with pytest.raises(
        ValueError,
        match="`in_channels`=8 of the base's UNet must be 4, as many as it gives",
    ):
        SeeCoderPipeline(**{**parts, "unet": build["unet"](in_channels=8)})


def test_closed_loops_are_decoded_without_a_seam(pipe, parts):
    """The wrapped decode of a rolled panorama is the rolled decode; a plain decode has borders."""
    from seecoder.pipelines.autoencoding import decode_latents

    latents = torch.randn((1, 4, 8, 48), generator=seeded(7))
    rolled = latents.roll(20, dims=-1)

    def seam(wrap):
        pixels = decode_latents(pipe.vae, latents, wrap=wrap)[0]
        again = decode_latents(pipe.vae, rolled, wrap=wrap)[0].roll(-40, dims=-1)
        assert pixels.shape[-2:] == (16, 96)
        return float((pixels - again)[..., :4].abs().mean())

    assert seam(True) < 0.2 * seam(False)
