"""From pictures to contexts: one each or several together, at the size that the encoder knows."""

import pytest
import torch

from seecoder import SeeCoderPipeline
from seecoder.encoder.context import ImageSet
from seecoder.images.scaling import limit_area


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def test_the_encoder_sees_large_pictures_reduced(pipe, make):
    large = torch.rand(3, 96, 128, generator=seeded())
    seen = limit_area(large, 48)
    assert tuple(seen.shape) == (3, 42, 55)
    torch.testing.assert_close(pipe.encode_context(large, image_size=48), pipe.encode_context(seen), atol=0, rtol=0)
    torch.testing.assert_close(make(image=large, image_size=48), make(image=seen), atol=0, rtol=0)
    own = pipe.encoder(large[None])
    torch.testing.assert_close(pipe.encode_context(large), own, atol=0, rtol=0)  # 512 by default
    torch.testing.assert_close(pipe.encode_context(large, image_size=None), own, atol=0, rtol=0)
    assert not torch.equal(pipe.encode_context(large, image_size=48), own)


def test_size_and_guidance_are_those_that_the_encoder_records(parts, build, picture):
    encoder = build["encoder"](image_size=48, guidance_scale=5.0)
    pipe = SeeCoderPipeline(**{**parts, "encoder": encoder})
    pipe.set_progress_bar_config(disable=True)
    large = torch.rand(3, 96, 128, generator=seeded())
    torch.testing.assert_close(pipe.encode_context(large), encoder(limit_area(large, 48)[None]), atol=0, rtol=0)
    torch.testing.assert_close(pipe.encode_context(large, image_size=None), encoder(large[None]), atol=0, rtol=0)
    torch.testing.assert_close(
        pipe.context_arguments(large)["context"], pipe.encode_context(large, image_size=48), atol=0, rtol=0
    )

    def make(**arguments):
        return pipe(picture, num_inference_steps=2, generator=seeded(), output_type="pt", **arguments).images

    assert torch.equal(make(), make(guidance_scale=5.0, image_size=48))
    assert not torch.equal(make(), make(guidance_scale=2.0))
    assert pipe.default_guidance == 5.0
    assert SeeCoderPipeline(**{**parts, "encoder": None}).default_guidance == 2.0
    with pytest.raises(ValueError, match="`image_size`='trainde' must be 'trained' or a whole number from 32 up, or"):
        make(image_size="trainde")


def test_several_pictures_make_one_context(pipe, make, picture):
    one, other = pipe.encode_context(picture), pipe.encode_context(1 - picture)
    both = make(image=[[picture, 1 - picture]], context_weights=[3, 1])
    torch.testing.assert_close(both, make(context=0.75 * one + 0.25 * other), atol=1e-4, rtol=0)
    torch.testing.assert_close(both, make(image=ImageSet([picture, 1 - picture], [3, 1])), atol=0, rtol=0)
    torch.testing.assert_close(make(image=[[picture, picture]]), make(), atol=1e-4, rtol=0)
    # The same tokens twice, side by side, are the same to an attention without positions.
    twice = make(image=ImageSet([picture, picture], combine="concatenate"))
    torch.testing.assert_close(twice, make(), atol=1e-4, rtol=0)


def test_image_and_context_exclude_each_other(pipe, picture):
    with pytest.raises(ValueError, match="either `image` or `context`"):
        pipe(picture, context=torch.zeros(1, 6, 32))
    with pytest.raises(ValueError, match="either `image` or `context`"):
        pipe()


def test_without_an_encoder_a_context_is_needed(parts, picture):
    pipe = SeeCoderPipeline(**{**parts, "encoder": None})
    with pytest.raises(ValueError, match="this pipeline has none"):
        pipe(picture)


def test_offloading_hooks_are_told_before_the_encoder_runs(pipe, picture):
    """`enable_model_cpu_offload` needs an accelerator; its hook is stood in for here."""
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    class Recorder(ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            self.calls += 1
            return args, kwargs

    recorder = Recorder()
    add_hook_to_module(pipe.encoder, recorder)
    try:
        pipe(picture, num_inference_steps=1)
    finally:
        remove_hook_from_module(pipe.encoder)
    assert recorder.calls == 1


def test_masks_say_what_counts_of_each_picture(pipe, make, picture):
    left = torch.zeros(40, 48)
    left[:, :24] = 1.0
    mirrored = torch.where(left > 0, picture, 1 - picture)
    masked = make(image_mask=left)
    assert torch.equal(make(image=mirrored, image_mask=left), masked)
    assert not torch.equal(make(), masked)
    # As large as it likes to be; in a set, or one for each of several.
    assert torch.equal(make(image=ImageSet([picture], masks=[left])), masked)
    contexts = [pipe.encoder.encode(picture[None], mask=left[None, None]).context, pipe.encode_context(picture)]
    both = make(image=[picture, picture], image_mask=[left, None], generator=[seeded(), seeded()])
    assert torch.equal(both, make(context=torch.cat(contexts), generator=[seeded(), seeded()]))
    average = make(image=[[picture, 1 - picture]], image_mask=left)
    assert torch.equal(average, make(image=ImageSet([picture, 1 - picture], masks=[left, left])))
    with pytest.raises(ValueError, match="`image_mask` has 3 masks for 2 entries of `image`"):
        make(image=[picture, picture], image_mask=[left] * 3)
    with pytest.raises(ValueError, match="`masks` has 1 entries for 2 pictures"):
        make(image=ImageSet([picture, picture], masks=[left]))
    with pytest.raises(ValueError, match="`image_mask` has no effect on a ready `context`"):
        make(context=contexts[0], image_mask=left)


def test_a_short_or_learned_negative_context_is_followed_by_zeros(parts, build, make, picture):
    tokens = torch.rand(1, 4, 32, generator=seeded(3))
    padded = torch.cat([tokens, torch.zeros(1, 2, 32)], 1)
    expected = make(negative_context=padded)
    assert torch.equal(make(negative_context=tokens), expected)
    encoder = build["encoder"]()
    encoder.set_negative_context(tokens)
    pipe = SeeCoderPipeline(**{**parts, "encoder": encoder})
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "output_type": "pt"}
    assert torch.equal(pipe(picture, generator=seeded(), **settings).images, expected)
    zeros = torch.zeros(1, 6, 32)
    assert torch.equal(pipe(picture, negative_context=zeros, generator=seeded(), **settings).images, make())
