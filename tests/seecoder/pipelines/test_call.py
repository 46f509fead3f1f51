"""One call: what it does once, however many of its parts ask for it."""

import inspect

import pytest
import torch

from seecoder import SeeCoderPipeline, SeeCoderXLPipeline
from seecoder.images.loading import save_image
from seecoder.pipelines import call, conditioning, inputs
from seecoder.sampling import DemoFusion, MultiDiffusion, engine


@pytest.fixture
def pipe(parts, tiny_controlnet):
    pipeline = SeeCoderPipeline(**parts, controlnet=tiny_controlnet)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def count_calls(monkeypatch, function, *modules):
    """A list that gets the first argument of every call of a function that these modules use."""
    seen = []

    def counted(*given, **named):
        seen.append(given[0])
        return function(*given, **named)

    for module in modules:
        monkeypatch.setattr(module, function.__name__, counted)
    return seen


def test_each_picture_is_decoded_once(pipe, picture, tmp_path, monkeypatch):
    paths = [str(tmp_path / f"{name}.png") for name in ("own", "control", "start")]
    for path in paths:
        save_image(picture[:, :40, :40], path)
    decoded = count_calls(monkeypatch, inputs.load_image, inputs, conditioning)
    pipe(
        paths[0], 32, 32, control_image=paths[1], start_image=paths[2], num_inference_steps=2, method=DemoFusion(),
        num_images_per_prompt=2, callback_on_stage_end=lambda *given: None,
    )  # fmt: skip
    assert sorted(decoded) == sorted(paths)


def test_methods_are_composed_once(parts, picture, monkeypatch):
    pipe = SeeCoderPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    composed = count_calls(monkeypatch, call.compose, call, engine)
    method = [MultiDiffusion(stride=4)]
    pipe(picture, 16, 32, num_inference_steps=2, method=method)
    assert composed == [method]


def test_a_tuple_is_given_where_no_object_is_wanted(parts, picture):
    pipe = SeeCoderPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 1, "output_type": "latent"}
    output = pipe(picture, generator=torch.Generator().manual_seed(0), **settings)
    images, notes = pipe(picture, generator=torch.Generator().manual_seed(0), return_dict=False, **settings)
    assert torch.equal(images, output.images)
    assert notes == output.notes == []


@pytest.mark.parametrize("pipeline", [SeeCoderPipeline, SeeCoderXLPipeline])
def test_help_of_a_call_documents_every_argument(pipeline):
    text = inspect.getdoc(pipeline.__call__)
    for name in list(inspect.signature(pipeline.__call__).parameters)[1:]:
        assert f"\n    {name}: " in text
    assert "as there" not in text
    assert "**" not in str(inspect.signature(pipeline.__call__))


def test_both_pipelines_take_the_same_arguments_with_the_same_defaults():
    one, other = (inspect.signature(each.__call__).parameters for each in (SeeCoderPipeline, SeeCoderXLPipeline))
    assert {name: parameter.default for name, parameter in one.items()}.items() <= {
        name: parameter.default for name, parameter in other.items()
    }.items()
