"""Options become values, and errors of the library name the options."""

import argparse
from inspect import signature

import pytest

from seecoder import SeeCoderPipeline
from seecoder.cli import build_parser
from seecoder.cli.options import add_image_size, key_value, pipeline_arguments, with_flags
from seecoder.pipelines.bounded_memory import AUTOENCODER_MEMORY

GIVEN = ["vary", "a.png", "--base", "b", "--encoder", "e", "--out", "o"]


def test_defaults_that_are_said_twice_are_the_pipeline_s():
    """The options state them anew, because the parser answers without importing torch."""
    assert build_parser().parse_args(GIVEN).autoencoder_memory == AUTOENCODER_MEMORY
    parser = argparse.ArgumentParser()
    add_image_size(parser)
    assert parser.parse_args([]).image_size == signature(SeeCoderPipeline.__call__).parameters["image_size"].default
    assert parser.parse_args(["--image-size", "48"]).image_size == 48
    assert parser.parse_args(["--image-size", "own"]).image_size is None


def test_options_become_arguments_of_the_call():
    given = pipeline_arguments(build_parser().parse_args([*GIVEN, "--steps", "7", "--view-batch", "3"]))
    assert (given["num_inference_steps"], given["view_batch_size"], given["guidance_scale"]) == (7, 3, None)


def test_errors_name_the_option_in_place_of_the_argument():
    assert with_flags("`num_inference_steps`=0 must be more") == "`--steps`=0 must be more"
    assert with_flags("`prediction_type`=x of `base`") == "`--prediction-type`=x of `--base`"
    assert with_flags("`stride`=0 must be more") == "`stride`=0 must be more"


@pytest.mark.parametrize("text", ["stride", "=4", "a b=4"])
def test_what_is_no_pair_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not key=value"):
        key_value(text)
