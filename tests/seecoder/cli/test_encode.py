"""`seecoder encode` keeps the contexts of pictures."""

import json

import torch

from seecoder.cli import main
from seecoder.encoder.context import load_context
from seecoder.images.gate import load_image


def test_encode_keeps_every_picture(pictures, encoder_folder, tiny_encoder, tmp_path, info_of):
    out = tmp_path / "deep" / "contexts.safetensors"
    arguments = ["encode", *pictures, "--encoder", str(encoder_folder), "--device", "cpu", "--out"]
    assert main([*arguments, str(out)]) == 0
    saved = load_context(out)
    with torch.no_grad():
        expected = torch.cat([tiny_encoder(load_image(path)[None]) for path in pictures])
    assert torch.equal(saved.context, expected)
    assert json.loads(saved.metadata["sources"]) == pictures
    assert info_of(out)["shape"] == [2, 6, 32]
    assert main([*arguments, str(out)]) == 2  # it is there already
    together = tmp_path / "together.safetensors"
    assert main([*arguments, str(together), "--together", "--weights", "1", "3"]) == 0
    torch.testing.assert_close(load_context(together).context, 0.25 * expected[:1] + 0.75 * expected[1:])
    assert main([*arguments, str(tmp_path / "contexts.pt")]) == 2
    assert main(["encode", pictures[0], "--encoder", str(out), "--out", str(tmp_path / "x.safetensors")]) == 2
