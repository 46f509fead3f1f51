"""The pipeline on tiny real components, and a short way to call it."""

import pytest
import torch

from seecoder import SeeCoderPipeline


@pytest.fixture
def pipe(parts):
    pipeline = SeeCoderPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def make(pipe, picture):
    """Pixels (N, 3, 16, 16) of a call, with few steps and a seed unless told otherwise."""

    def run(image=picture, **arguments):
        if "context" in arguments:
            image = None
        settings = {
            "num_inference_steps": 2,
            "generator": torch.Generator().manual_seed(0),
            "output_type": "pt",
            **arguments,
        }
        return pipe(image, **settings).images

    return run
