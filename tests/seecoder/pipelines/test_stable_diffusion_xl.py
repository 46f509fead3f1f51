"""SDXL: the pooled vector and the time ids besides the context."""

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from seecoder import SeeCoderPipeline, SeeCoderXLPipeline
from seecoder.sampling import MultiDiffusion, Region

POOLED = 20


@pytest.fixture
def xl_parts(parts, build):
    unet = build["unet"](
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=POOLED + 6 * 8
    )
    return {**parts, "unet": unet, "encoder": build["encoder"](pooled_dim=POOLED)}


@pytest.fixture
def pipe(xl_parts):
    pipeline = SeeCoderXLPipeline(**xl_parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_stock_pipeline_gives_the_same_picture(pipe, picture):
    context, pooled = pipe.encode_context(picture)
    assert context.shape == (1, 6, 32)
    assert pooled.shape == (1, POOLED)
    stock = StableDiffusionXLPipeline(
        vae=pipe.vae,
        unet=pipe.unet,
        scheduler=pipe.scheduler,
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        add_watermarker=False,
    )
    stock.set_progress_bar_config(disable=True)
    # Stock takes the width of the pooled vector from a text encoder that is not there, unless it is told.
    common = {"num_inference_steps": 2, "guidance_scale": 2.0, "height": 16, "width": 16, "output_type": "pt"}
    theirs = stock(
        prompt_embeds=context,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=torch.zeros_like(context),
        negative_pooled_prompt_embeds=torch.zeros_like(pooled),
        generator=torch.Generator().manual_seed(0),
        **common,
    ).images
    ours = pipe(context=context, pooled_context=pooled, generator=torch.Generator().manual_seed(0), **common).images
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    from_picture = pipe(picture, generator=torch.Generator().manual_seed(0), **common).images
    assert torch.equal(from_picture, ours)


def test_time_ids_of_frames_and_windows(pipe, picture):
    seen = []

    def hook(module, given, keywords):
        seen.append(keywords["added_cond_kwargs"]["time_ids"])

    handle = pipe.unet.register_forward_pre_hook(hook, with_kwargs=True)
    pipe(picture, num_inference_steps=1, height=16, width=32)
    assert torch.equal(seen[-1], torch.tensor([[16.0, 32, 0, 0, 16, 32]] * 2))
    pipe(picture, num_inference_steps=1, guidance_scale=1.0, height=16, width=32, method=MultiDiffusion(stride=4))
    assert seen[-1].tolist() == [[16, 32, 0, left, 16, 32] for left in (0, 8, 16)]
    pipe(
        picture, num_inference_steps=1, guidance_scale=1.0, original_size=(64, 65), target_size=(66, 67),
        crops_coords_top_left=(3, 4),
    )  # fmt: skip
    handle.remove()
    assert seen[-1].tolist() == [[64, 65, 3, 4, 66, 67]]


def test_pooled_vectors_follow_their_pictures(pipe, picture):
    seen = []

    def hook(module, given, keywords):
        seen.append(keywords["added_cond_kwargs"]["text_embeds"])

    handle = pipe.unet.register_forward_pre_hook(hook, with_kwargs=True)
    pipe([picture, 1 - picture], num_inference_steps=1, num_images_per_prompt=2)
    handle.remove()
    _, pooled = pipe.encode_context([picture, 1 - picture])
    rows = seen[-1]
    assert torch.equal(rows[:4], torch.zeros(4, POOLED))
    assert torch.equal(rows[4:], pooled.repeat_interleave(2, dim=0))


def test_a_region_brings_its_own_pooled_vector(pipe, picture):
    """A region that is everything gives the picture of its own; without its pooled vector it is half of the other."""
    other = 1 - picture
    context, pooled = pipe.encode_context(other)
    everywhere = torch.ones(2, 4)

    def made(image, *regions):
        return pipe(
            image, height=16, width=32, num_inference_steps=2, guidance_scale=3.0, output_type="latent",
            method=MultiDiffusion(stride=4, regions=regions, bootstrap=0.0), generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip

    expected = made(other)
    torch.testing.assert_close(made(picture, Region(everywhere, context, pooled)), expected)
    assert not torch.allclose(made(picture, Region(everywhere, context)), expected, rtol=1e-3)
    with pytest.raises(ValueError, match=r"`pooled` must be \(1 or B, width\) and finite, not \(20,\)"):
        Region(everywhere, context, pooled[0])
    with pytest.raises(ValueError, match="`pooled` is 19 wide; this run reads 20"):
        made(picture, Region(everywhere, context, pooled[:, :-1]))


def test_a_pooled_vector_that_nothing_reads_is_refused(parts, picture):
    pipe = SeeCoderPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    region = Region(torch.ones(2, 4), pipe.encode_context(picture), torch.zeros(1, POOLED))
    with pytest.raises(ValueError, match=r"`pooled` has no effect: .* no pooled vector"):
        pipe(picture, 16, 32, num_inference_steps=1, method=MultiDiffusion(regions=[region], bootstrap=0.0))


def test_save_and_load(pipe, picture, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    again = SeeCoderXLPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    pictures = [
        one(picture, num_inference_steps=1, generator=torch.Generator().manual_seed(0), output_type="pt").images
        for one in (pipe, again)
    ]
    assert torch.equal(*pictures)


def test_families_are_not_mixed(parts, xl_parts, build, picture):
    with pytest.raises(ValueError, match="use SeeCoderXLPipeline"):
        SeeCoderPipeline(**xl_parts)
    with pytest.raises(ValueError, match="use SeeCoderPipeline"):
        SeeCoderXLPipeline(**parts)
    with pytest.raises(ValueError, match="`pooled_dim`=None of the encoder must be 20"):
        SeeCoderXLPipeline(**{**xl_parts, "encoder": parts["encoder"]})


def test_context_and_pooled_go_together(pipe):
    with pytest.raises(ValueError, match="go together"):
        pipe(context=torch.zeros(1, 6, 32))
    with pytest.raises(ValueError, match=r"`pooled_context` has shape \(1, 3\); this base reads \(N, 20\)"):
        pipe(context=torch.zeros(1, 6, 32), pooled_context=torch.zeros(1, 3), num_inference_steps=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooled_context": torch.zeros(2, 20)}, r"`pooled_context` has shape \(2, 20\); .* reads \(N, 20\), N=1"),
        ({"pooled_context": torch.zeros(20)}, r"`pooled_context` has shape \(20,\)"),
        ({"pooled_context": torch.full((1, 20), float("nan"))}, "`pooled_context` contains NaN"),
        ({"negative_pooled_context": torch.zeros(1, 8)}, r"`negative_pooled_context` has shape \(1, 8\)"),
        ({"original_size": 64}, r"`original_size`=64 must be \(height, width\) in pixels, or None"),
        ({"target_size": (1, 2, 3)}, r"`target_size`=\(1, 2, 3\) must be \(height, width\)"),
        ({"crops_coords_top_left": "00"}, r"`crops_coords_top_left`='00' must be \(height, width\)"),
    ],
)
def test_what_sdxl_alone_reads_is_checked_by_name(pipe, arguments, message):
    given = {"context": torch.zeros(1, 6, 32), "pooled_context": torch.zeros(1, 20), **arguments}
    with pytest.raises(ValueError, match=message):
        pipe(**given, num_inference_steps=1)


def test_the_vae_is_upcast_as_its_configuration_asks(xl_parts, build, picture):
    seen = []
    vae = build["vae"](force_upcast=True).to(torch.float16)
    vae.decoder.register_forward_pre_hook(lambda module, given: seen.append(given[0].dtype))
    pipe = SeeCoderXLPipeline(**{**xl_parts, "vae": vae})
    pipe.set_progress_bar_config(disable=True)
    output = pipe(picture, num_inference_steps=1)
    assert seen == [torch.float32]
    assert output.notes == []
    assert pipe.vae.dtype == torch.float16
