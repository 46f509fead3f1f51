"""The example of the encoder's README, a backbone of one's own, runs as it stands there."""

import importlib
import re
from pathlib import Path

import pytest
import torch

from seecoder import SeeCoder
from tests.fixtures.encoders import TINY

README = Path(__file__).parents[2] / "seecoder" / "encoder" / "README.md"


def test_the_documented_backbone_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = (
        code for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "register_model" in code
    )
    (tmp_path / "documented_backbone.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("documented_backbone")
    sizes = {key: value for key, value in TINY.items() if key != "backbone_args"}
    encoder = SeeCoder(backbone="three_maps", **sizes).eval()
    with torch.no_grad():
        assert encoder(torch.rand(1, 3, 45, 61)).shape == (1, 8, 32)
    assert [tuple(level.shape[1:]) for level in encoder.compute_maps(torch.rand(1, 3, 64, 96))] == [
        (8, 8, 12), (16, 4, 6), (32, 2, 3),
    ]  # fmt: skip
    assert not any(name.startswith("backbone.") for name, _ in encoder.trainable_named_parameters())
