"""What the command line names is opened: pictures, devices, encoders or contexts."""

from argparse import Namespace

import pytest
import torch

from seecoder.cli.opening import (
    load_encoder_or_context,
    open_pictures,
    pick_device,
    pick_dtype,
    saved_contexts,
)
from seecoder.encoder.context import save_context
from seecoder.images.loading import limit_area, load_image


def test_pictures_are_kept_as_they_are_needed(pictures):
    first, second = pictures
    arguments = Namespace(
        pictures=[first], control_image=None, start_image=second, region=[(second, first)], image_size=32
    )
    opened = open_pictures(arguments)
    assert list(opened.encoded) == list(opened.thumbnails) == [first]
    assert torch.equal(opened.encoded[first], limit_area(load_image(first), 32))
    assert max(opened.thumbnails[first].size) <= 256
    assert list(opened.whole) == [second]
    assert torch.equal(opened.whole[second], load_image(second))


def test_devices_and_their_dtypes():
    assert pick_dtype("auto", pick_device("cpu")) == torch.float32
    assert pick_dtype("auto", torch.device("cuda")) == torch.float16
    assert pick_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    with pytest.raises(ValueError, match="is not a device"):
        pick_device("abacus")


def test_an_encoder_or_contexts(encoder_folder, tmp_path):
    encoder, contexts = load_encoder_or_context(str(encoder_folder))
    assert contexts is None
    assert encoder.config["context_dim"] == 32
    save_context(tmp_path / "contexts.safetensors", torch.zeros(2, 6, 32))
    encoder, contexts = load_encoder_or_context(str(tmp_path / "contexts.safetensors"))
    assert encoder is None
    assert contexts is not None
    assert contexts.context.shape == (2, 6, 32)
    assert saved_contexts(str(encoder_folder)) is None
    with pytest.raises(FileNotFoundError, match=r"`--encoder`=\./nowhere does not exist"):
        load_encoder_or_context("./nowhere")
