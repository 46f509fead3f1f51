"""The one call of both pipelines: its arguments, their help, and what only one family reads."""

import inspect
from typing import Any

import pytest
import torch

from seecoder import SeeCoderPipeline, SeeCoderXLPipeline


def test_arguments_are_those_of_the_signature(pipe: Any, picture: Any) -> None:
    settings = {"num_inference_steps": 1, "output_type": "pt"}
    assert pipe(picture, 24, 32, **settings).images.shape[-2:] == (24, 32)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        pipe(picture, **settings, prompt="a cat")


@pytest.mark.parametrize(
    "argument",
    [
        {"pooled_context": torch.zeros(1, 3)},
        {"negative_pooled_context": torch.zeros(1, 3)},
        {"original_size": (64, 64)},
        {"crops_coords_top_left": (0, 8)},
        {"target_size": (64, 64)},
    ],
)
def test_what_only_sdxl_reads_is_refused_by_other_bases(pipe: Any, picture: Any, argument: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(argument))}` has no effect: this base is not SDXL's"):
        pipe(picture, num_inference_steps=1, **argument)


@pytest.mark.parametrize("pipeline", [SeeCoderPipeline, SeeCoderXLPipeline])
def test_help_of_a_call_documents_every_argument(pipeline: type) -> None:
    text = inspect.getdoc(pipeline.__call__) or ""
    for name in list(inspect.signature(pipeline.__call__).parameters)[1:]:
        assert f"\n    {name}: " in text
    assert "as there" not in text
    assert "**" not in str(inspect.signature(pipeline.__call__))
