"""What a call accepts: arguments are checked by name and value before a network runs, pictures come in any form."""

import numpy as np
import pytest
import torch

from seecoder.encoder.context import ImageSet
from seecoder.pipelines.inputs import as_image_sets, control_pixels, start_pixels


def test_every_form_of_image_becomes_sets():
    first, second = torch.zeros(3, 32, 32), torch.ones(3, 32, 32)
    counts = {
        "one": ([first], as_image_sets(first)),
        "several": ([first, second], as_image_sets([first, second])),
        "stack": ([first, second], as_image_sets(torch.stack([first, second]))),
        "array": ([first], as_image_sets(np.zeros((1, 32, 32, 3), np.uint8))),
    }
    for pictures, sets in counts.values():
        assert [len(entry.images) for entry in sets] == [1] * len(pictures)
    together, alone = as_image_sets([[first, second], ImageSet([second])], [3, 1])
    assert (len(together.images), together.weights) == (2, [3, 1])
    assert (len(alone.images), alone.weights) == (1, None)


def test_a_start_picture_is_never_enlarged_and_fits_the_cells():
    assert start_pixels(torch.rand(3, 16, 24), (64, 96), 8).shape == (1, 3, 16, 24)
    assert start_pixels(torch.rand(3, 128, 192), (64, 96), 8).shape == (1, 3, 64, 96)
    assert start_pixels(torch.rand(3, 17, 25), (64, 96), 8).shape == (1, 3, 16, 24)


def test_control_pictures_are_one_or_one_each():
    picture = torch.rand(3, 16, 16)
    assert control_pixels(picture, 3).shape == (1, 3, 16, 16)
    assert control_pixels([picture] * 3, 3).shape == (3, 3, 16, 16)
    for wrong in ([picture] * 2, [picture, picture, picture[:, :8]]):
        with pytest.raises(ValueError, match="give one for all, or one each, of one size"):
            control_pixels(wrong, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 17}, r"`height`=17 must be a positive multiple of 2 .* Use 16 or 18"),
        ({"width": 0}, r"`width`=0 must be a positive multiple of 2"),
        ({"num_inference_steps": 0}, r"`num_inference_steps`=0 must be a whole number from 1 up"),
        ({"num_images_per_prompt": 0}, r"`num_images_per_prompt`=0 must be a whole number from 1 up"),
        ({"view_batch_size": 0}, r"`view_batch_size`=0 must be a whole number from 1 up"),
        ({"guidance_scale": float("nan")}, r"`guidance_scale`=nan must be a number"),
        ({"eta": 2.0}, r"`eta`=2.0 must be a number from 0 to 1"),
        ({"autoencoder_memory": 0.0}, r"`autoencoder_memory`=0.0 must be a number above 0 or infinity"),
        ({"output_type": "jpeg"}, r"`output_type`='jpeg' must be 'pil', 'np', 'pt' or 'latent'"),
        ({"generator": [torch.Generator()] * 2}, r"`generator` has 2 entries for 1 pictures"),
        (
            {"latents": torch.zeros(1, 4, 9, 8)},
            r"`latents` has shape \(1, 4, 9, 8\); the first stage .* needs \(1, 4, 8, 8\)",
        ),
        ({"context": torch.zeros(1, 6, 31)}, r"`context` has shape \(1, 6, 31\); this base reads \(N, T, 32\)"),
        ({"context": torch.full((1, 6, 32), float("inf"))}, r"`context` contains NaN"),
        ({"negative_context": torch.zeros(1, 7, 32)}, r"`negative_context` has shape \(1, 7, 32\)"),
        ({"context_weights": [1.0]}, r"`context_weights` have no effect"),
        ({"control_image": torch.zeros(3, 16, 16)}, r"there is a `control_image` but no `controlnet`"),
        (
            {"callback_on_step_end_tensor_inputs": ["noise"]},
            r"\['noise'\] must be a list of names out of latents, context",
        ),
        ({"image": []}, r"`image` is an empty list"),
        ({"image": [[]]}, r"inner list of `image` is empty"),
        ({"start_image": torch.zeros(3, 16, 32)}, r"another aspect ratio .* `width` near 32"),
        (
            {"control_guidance_start": 0.5, "control_guidance_end": 0.4},
            r"`control_guidance_start`=0.5 must not lie after",
        ),
        ({"control_guidance_end": 1.5}, r"`control_guidance_end`=1.5 must be a number from 0 to 1"),
    ],
)
def test_bad_arguments_are_named_before_anything_runs(pipe, make, arguments, message):
    def fail(*given):
        raise AssertionError("the UNet ran")

    handle = pipe.unet.register_forward_pre_hook(fail)
    try:
        with pytest.raises(ValueError, match=message):
            make(**arguments)
    finally:
        handle.remove()
