"""Text beside the picture, against stock diffusers on the same tokens."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from seecoder import SeeCoderPipeline, SeeCoderXLPipeline
from seecoder.pipelines.context.text import encode_text, load_text_parts
from seecoder.sampling import DemoFusion, MultiDiffusion, Region
from seecoder.weights import WeightsError

COMMON = {"num_inference_steps": 2, "output_type": "pt"}


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def pipe(parts, text_parts):
    pipeline = SeeCoderPipeline(**parts, **text_parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def xl_pipe(parts, build, xl_text_parts):
    unet = build["unet"](
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=20 + 6 * 8
    )
    pipeline = SeeCoderXLPipeline(
        **{**parts, "unet": unet, "encoder": build["encoder"](pooled_dim=20)}, **xl_text_parts
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def stock(pipe, text_parts):
    pipeline = StableDiffusionPipeline(
        pipe.vae,
        text_parts["text_encoder"],
        text_parts["tokenizer"],
        pipe.unet,
        pipe.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_tokens_lie_side_by_side_as_stock_reads_them(pipe, stock, picture):
    ours = pipe(picture, text="abc", negative_text="xy", generator=seeded(), guidance_scale=3.0, **COMMON).images
    text, negative = stock.encode_prompt("abc", "cpu", 1, True, "xy")
    context = pipe.encode_context(picture)
    theirs = stock(
        prompt_embeds=torch.cat([context, text], 1),
        negative_prompt_embeds=torch.cat([torch.zeros_like(context), negative], 1),
        height=16,
        width=16,
        generator=seeded(),
        guidance_scale=3.0,
        **COMMON,
    ).images
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    ready = pipe(picture, text=text, negative_text=negative, generator=seeded(), guidance_scale=3.0, **COMMON).images
    assert torch.equal(ready, ours)
    assert not torch.equal(pipe(picture, text="abc", generator=seeded(), guidance_scale=3.0, **COMMON).images, ours)


def test_all_of_the_weight_is_the_text_alone_and_none_of_it_the_picture(pipe, stock, picture):
    def make(weight):
        return pipe(picture, text="abc", text_weight=weight, generator=seeded(), **COMMON).images

    text, negative = stock.encode_prompt("abc", "cpu", 1, True, "")
    only = pipe(context=text, negative_context=negative, generator=seeded(), **COMMON).images
    torch.testing.assert_close(make(1.0), only, atol=1e-5, rtol=0)
    # A text of fewer tokens than the picture's, as in Stable Diffusion's 77 beside 148: no zeros behind it.
    short = {"text": text[:, :3], "negative_text": negative[:, :3], **COMMON}
    alone = pipe(context=text[:, :3], negative_context=negative[:, :3], generator=seeded(), **COMMON).images
    torch.testing.assert_close(pipe(picture, text_weight=1.0, generator=seeded(), **short).images, alone)
    assert torch.equal(make(0.0), pipe(picture, generator=seeded(), **COMMON).images)
    assert not torch.equal(make(0.5), make(1.0))
    assert not torch.equal(make(0.5), make(0.0))


def test_a_text_each_or_one_for_all(pipe, picture):
    pictures = [picture, 1 - picture]

    def make(image, text, count):
        generators = [torch.Generator().manual_seed(7) for _ in range(count)]
        return pipe(image, text=text, generator=generators, **COMMON).images

    both = make(pictures, ["abc", "z"], 2)
    torch.testing.assert_close(both[1:], make(pictures[1], "z", 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(make(pictures, "z", 2)[1:], both[1:], atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="`text` has 3 entries for 2 contexts"):
        make(pictures, ["a", "b", "c"], 2)


def test_sdxl_reads_two_encoders_and_a_pooled_vector_as_stock_does(xl_pipe, xl_text_parts, picture):
    stock = StableDiffusionXLPipeline(
        vae=xl_pipe.vae, unet=xl_pipe.unet, scheduler=xl_pipe.scheduler, add_watermarker=False, **xl_text_parts
    )
    text, _, pooled, _ = stock.encode_prompt("abc", device="cpu", do_classifier_free_guidance=False)
    tokens, vector = encode_text(xl_pipe, "abc", [])
    torch.testing.assert_close(tokens, text)
    torch.testing.assert_close(vector, pooled)
    ours = xl_pipe(picture, text="abc", generator=seeded(), **COMMON).images
    context, own = xl_pipe.encode_context(picture)
    joined = {"context": torch.cat([context, text], 1), "pooled_context": (own + pooled) / 2}
    torch.testing.assert_close(ours, xl_pipe(**joined, generator=seeded(), **COMMON).images, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"`text` has tokens of shape .* reads \(N, T, 32\) and pooled vectors"):
        xl_pipe(picture, text=text, **COMMON)


def test_text_under_a_method_at_twice_the_size(pipe, picture):
    large = {"height": 32, "width": 32, "method": DemoFusion(), **COMMON, "num_inference_steps": 3}
    with_text = pipe(picture, text="abc", generator=seeded(), **large).images
    assert with_text.shape[-2:] == (32, 32)
    assert not torch.equal(with_text, pipe(picture, generator=seeded(), **large).images)
    region = Region(torch.ones(4, 4), pipe.encode_context(1 - picture))
    with pytest.raises(ValueError, match="A region's `context` has 6 tokens; the run's has 18"):
        pipe(picture, text="abc", method=MultiDiffusion(regions=[region]), height=32, width=32, **COMMON)


def test_what_a_long_text_loses_is_said(pipe, picture):
    assert pipe(picture, text="abc def", **COMMON).notes == []
    notes = pipe(picture, text="abc def ghi jkl", **COMMON).notes
    assert notes == ["the text has more than 12 tokens; what comes after them was left out."]


def test_what_means_nothing_is_refused(parts, pipe, picture):
    with pytest.raises(ValueError, match="`negative_text` has no effect without `text`"):
        pipe(picture, negative_text="abc")
    with pytest.raises(ValueError, match=r"`text_weight`=1.5 must be a number from 0 to 1"):
        pipe(picture, text="abc", text_weight=1.5)
    with pytest.raises(ValueError, match=r"load it by `from_base\(..., text=True\)`"):
        SeeCoderPipeline(**parts)(picture, text="abc")


@pytest.fixture
def folder(tmp_path, parts, text_parts):
    """A base with its text encoder."""
    for name in ("unet", "vae", "scheduler"):
        parts[name].save_pretrained(tmp_path / name)
    for name, part in text_parts.items():
        part.save_pretrained(tmp_path / name)
    return tmp_path


def test_a_text_encoder_is_read_when_it_is_asked_for_and_saved_with_the_pipeline(folder, parts, picture, tmp_path):
    assert SeeCoderPipeline.from_base(folder, encoder=parts["encoder"]).text_encoder is None
    pipe = SeeCoderPipeline.from_base(folder, encoder=parts["encoder"], text=True)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(picture, text="abc", generator=seeded(), **COMMON).images
    pipe.save_pretrained(tmp_path / "saved")
    again = SeeCoderPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert torch.equal(again(picture, text="abc", generator=seeded(), **COMMON).images, made)


def test_parts_that_are_missing_or_something_else_are_refused(folder):
    config = folder / "text_encoder" / "config.json"
    entries = json.loads(config.read_text())
    config.write_text(json.dumps({**entries, "architectures": ["EvilModel"]}))
    with pytest.raises(ValueError, match="holds a EvilModel; expected CLIPTextModel or CLIPTextModelWithProjection"):
        load_text_parts(folder, ["text_encoder"])
    config.write_text(json.dumps({**entries, "num_hidden_layers": 3}))
    with pytest.raises(WeightsError, match=r"does not fit .* (is|are) missing"):
        load_text_parts(folder, ["text_encoder"])
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(
        FileNotFoundError, match=r"has no `text_encoder/`; give a diffusers folder with text_encoder/\.$"
    ):
        load_text_parts(folder, ["text_encoder"])
    with pytest.raises(FileNotFoundError, match=r"has no (words in|readable) tokenizer_2/"):
        load_text_parts(folder, ["tokenizer_2"])
