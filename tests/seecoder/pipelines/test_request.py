"""Arguments are checked by name and value before a network runs."""

import pytest
import torch


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
        ({"latents": torch.zeros(1, 4, 8, 8).numpy()}, r"`latents`=array.* must be a Tensor, or None"),
        (
            {"context": torch.zeros(1, 6, 32).numpy()},
            r"`context` has shape \('ndarray',\); this base reads \(N, T, 32\)",
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
