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
