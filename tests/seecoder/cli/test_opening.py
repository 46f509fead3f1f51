"""What the command line names is opened: pictures, devices, encoders or contexts."""

from argparse import Namespace

import pytest
import torch

from seecoder.cli.opening import load_encoder, open_pictures, pick_device, pick_dtype, saved_contexts
from seecoder.encoder.context import save_context
from seecoder.images.gate import load_image
from seecoder.images.masks import load_mask
from seecoder.images.scaling import limit_area


def test_pictures_are_kept_as_they_are_needed(pictures):
    first, second = pictures
    arguments = Namespace(
        pictures=[first],
        control_image=[],
        adapter_image=[],
        ip_adapter_image=None,
        start_image=second,
        region=[(second, first)],
        image_size=32,
    )
    opened = open_pictures(arguments)
    assert list(opened.encoded) == list(opened.thumbnails) == [first]
    assert torch.equal(opened.encoded[first], limit_area(load_image(first), 32))
    assert max(opened.thumbnails[first].size) <= 256
    assert list(opened.whole) == [second]
    assert torch.equal(opened.whole[second], load_image(second))
    assert torch.equal(opened.masks[second], load_mask(second))


def test_devices_and_their_dtypes():
    assert pick_dtype("auto", pick_device("cpu")) == torch.float32
    assert pick_dtype("auto", torch.device("cuda")) == torch.float16
    assert pick_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    with pytest.raises(ValueError, match="is not a device"):
        pick_device("abacus")


def test_an_encoder_or_contexts(encoder_folder, tmp_path):
    assert load_encoder(str(encoder_folder)).config["context_dim"] == 32
    assert saved_contexts(str(encoder_folder)) is None
    file = str(tmp_path / "contexts.safetensors")
    save_context(file, torch.zeros(2, 6, 32))
    contexts = saved_contexts(file)
    assert contexts is not None
    assert contexts.context.shape == (2, 6, 32)
    with pytest.raises(ValueError, match=r"contexts\.safetensors must be an encoder, not ready contexts"):
        load_encoder(file)
    with pytest.raises(FileNotFoundError, match=r"`--encoder`=\./nowhere does not exist"):
        load_encoder("./nowhere")
