"""One call: what it does once, however many of its parts ask for it."""

import pytest
import torch

from seecoder import SeeCoderPipeline
from seecoder.images import masks
from seecoder.images.saving import save_image
from seecoder.pipelines import call, conditioning, inputs
from seecoder.sampling import DemoFusion, MultiDiffusion, engine


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def count_calls(monkeypatch, function, *modules):
    """A list that gets the first argument of every call of a function that these modules use."""
    seen = []

    def counted(*given, **named):
        seen.append(given[0])
        return function(*given, **named)

    for module in modules:
        monkeypatch.setattr(module, function.__name__, counted)
    return seen


def test_each_picture_is_decoded_once(parts, tiny_controlnet, picture, tmp_path, monkeypatch):
    pipe = SeeCoderPipeline(**parts, controlnet=tiny_controlnet)
    pipe.set_progress_bar_config(disable=True)
    paths = [str(tmp_path / f"{name}.png") for name in ("own", "control", "start")]
    for path in paths:
        save_image(picture[:, :40, :40], path)
    decoded = count_calls(monkeypatch, inputs.load_image, inputs, conditioning, masks)
    pipe(
        paths[0], 32, 32, control_image=paths[1], start_image=paths[2], num_inference_steps=2, method=DemoFusion(),
        num_images_per_prompt=2, callback_on_stage_end=lambda *given: None,
    )  # fmt: skip
    assert sorted(decoded) == sorted(paths)


def test_methods_are_composed_once(pipe, picture, monkeypatch):
    composed = count_calls(monkeypatch, call.compose, call, engine)
    method = [MultiDiffusion(stride=4)]
    pipe(picture, 16, 32, num_inference_steps=2, method=method)
    assert composed == [method]


def test_a_tuple_is_given_where_no_object_is_wanted(pipe, picture):
    settings = {"num_inference_steps": 1, "output_type": "latent"}
    output = pipe(picture, generator=torch.Generator().manual_seed(0), **settings)
    images, notes = pipe(picture, generator=torch.Generator().manual_seed(0), return_dict=False, **settings)
    assert torch.equal(images, output.images)
    assert notes == output.notes == []


def test_callback_sees_every_step_and_can_stop(pipe, picture):
    seen = []

    def watch(running, step, timestep, tensors):
        seen.append((step, timestep, sorted(tensors), tensors["latents"].shape))
        running._interrupt = step == 1
        return {}

    output = pipe(
        picture,
        num_inference_steps=5,
        callback_on_step_end=watch,
        callback_on_step_end_tensor_inputs=["latents", "context"],
    )
    assert [step for step, *_ in seen] == [0, 1]
    assert seen[0][1:] == (801.0, ["context", "latents"], (1, 4, 8, 8))
    assert "interrupted after step 2 of 5" in output.notes[0]
    # The next call is not interrupted any more.
    assert pipe(picture, num_inference_steps=1).notes == []


@pytest.mark.parametrize("output_type", ["pil", "latent"])
def test_callback_sees_what_every_stage_has_reached(pipe, picture, output_type):
    seen = []
    options = {"height": 48, "width": 48, "num_inference_steps": 2, "output_type": output_type}
    final = pipe(
        picture,
        **options,
        method=DemoFusion(),
        generator=seeded(),
        callback_on_stage_end=lambda running, stage, images: seen.append((running, stage, images)),
    ).images
    silent = pipe(picture, **options, method=DemoFusion(), generator=seeded()).images
    assert [(stage.stage_index, stage.num_stages) for _, stage, _ in seen] == [(0, 3), (1, 3)]
    assert all(running is pipe for running, _, _ in seen)
    if output_type == "pil":
        assert [images[0].size for _, _, images in seen] == [(16, 16), (32, 32)]
        assert final[0].tobytes() == silent[0].tobytes()
    else:
        assert all(images is stage.latents for _, stage, images in seen)
        assert torch.equal(final, silent)
    pipe(picture, num_inference_steps=1, callback_on_stage_end=lambda *_: pytest.fail("plain sampling has one stage"))
