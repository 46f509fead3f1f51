"""`start_image`, `strength` and `mask_image` of a call: what they mean, and what is refused before anything runs."""

import pytest
import torch

from seecoder import SeeCoderPipeline, SeeCoderXLPipeline
from seecoder.pipelines.redrawing import feathered
from seecoder.sampling import DemoFusion

START = torch.rand((3, 16, 16), generator=torch.Generator().manual_seed(5))
LEFT = torch.zeros(16, 16)
LEFT[:, :8] = 1.0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"strength": 0.5}, "`strength` has no effect without `start_image`"),
        ({"mask_image": LEFT}, "`mask_image` has no effect without `start_image`"),
        ({"start_image": START, "mask_feather": 3}, "`mask_feather`=3 has no effect without `mask_image`"),
        ({"start_image": START, "strength": 0.0}, "`strength`=0.0 must be a number above 0 and up to 1, or None"),
        ({"start_image": START, "strength": 0.3}, "`strength`=0.3 of 2 steps must leave at least one step"),
        ({"start_image": START, "num_inference_steps": 1}, "`strength`=0.8 of 1 steps must leave at least one step"),
        ({"start_image": START, "mask_image": LEFT[:8]}, "`mask_image` is 8x16, another aspect ratio than the"),
        ({"start_image": START, "mask_image": 0.3 * LEFT}, "`mask_image` has nothing above one half"),
        ({"timesteps": [900, 100], "sigmas": [3.0, 0.0]}, "`timesteps` and `sigmas` contradict each other"),
        ({"timesteps": [900, "last"]}, "`timesteps`=.* must be a list of timesteps"),
    ],
)
def test_what_means_nothing_is_refused_before_anything_is_encoded(pipe, make, arguments, error):
    handle = pipe.encoder.register_forward_pre_hook(lambda *given: pytest.fail("a picture was encoded"))
    with pytest.raises(ValueError, match=error):
        make(**arguments)
    handle.remove()


def test_a_picture_is_redrawn_by_four_fifths_unless_told_otherwise(make):
    settings = {"start_image": START, "num_inference_steps": 5}
    assert torch.equal(make(**settings), make(**settings, strength=0.8))
    assert torch.equal(make(**settings, mask_image=LEFT), make(**settings, mask_image=LEFT, strength=1.0))
    assert not torch.equal(make(**settings), make(**settings, strength=0.4))


def test_demofusion_enlarges_a_picture_unless_it_is_told_a_strength(make):
    settings = {"height": 32, "width": 32, "method": DemoFusion(), "start_image": START, "num_inference_steps": 4}
    assert not torch.equal(make(**settings), make(**settings, strength=0.8))


def test_pixels_are_kept_exactly_and_fade_over_the_feather(make):
    found = make(start_image=START, mask_image=LEFT)[0]
    assert torch.equal(found[..., 8:], START[..., 8:])
    soft = make(start_image=START, mask_image=LEFT, mask_feather=3)[0]
    assert torch.equal(soft[..., :8], found[..., :8])
    assert torch.equal(soft[..., 11:], START[..., 11:])
    assert not torch.equal(soft[..., 8:11], START[..., 8:11])


def test_a_mask_that_marks_nothing_gives_the_picture_back(make):
    assert torch.equal(make(start_image=START, mask_image=torch.zeros(16, 16), mask_feather=2)[0], START)


def test_a_feather_falls_evenly_from_the_mask_outwards_and_keeps_thin_strokes():
    weight = feathered(LEFT[None, None], 3)[0, 0, 5]
    assert weight[:8].tolist() == [1.0] * 8
    torch.testing.assert_close(weight[8:12], torch.tensor([6 / 7, 4 / 7, 2 / 7, 0.0]))
    stroke = torch.zeros(1, 1, 16, 16)
    stroke[..., 7] = 1.0
    assert feathered(stroke, 4)[..., 7].min() == 1.0


def test_a_small_picture_is_enlarged_to_the_result_and_a_large_one_reduced(make):
    for side in (8, 40):
        start = torch.full((3, side, side), 0.25)
        found = make(start_image=start, mask_image=torch.ones(16, 16) - LEFT)[0]
        torch.testing.assert_close(found[..., :8], torch.full((3, 16, 8), 0.25))


@pytest.mark.parametrize("cls", [SeeCoderPipeline, SeeCoderXLPipeline])
def test_an_inpainting_base_asks_for_a_mask(parts, build, picture, cls):
    xl = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 20 + 6 * 8,
    }
    unet = build["unet"](in_channels=9, **(xl if cls is SeeCoderXLPipeline else {}))
    pipe = cls(**{**parts, "unet": unet, "encoder": None})
    for given in ({}, {"start_image": START}):
        with pytest.raises(ValueError, match=r"inpainting model.* Give `start_image` and `mask_image`"):
            pipe(picture, **given)
