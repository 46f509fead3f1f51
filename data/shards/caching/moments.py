"""Latent moments kept beside pictures: the posterior of a frozen autoencoder, which is always the same for a picture.

`python -m data.cache` computes it once. A sample's member `moments.safetensors` holds `mean` and `std` (C, h, w) of the
*scaled* latent in half precision, maybe `flipped_mean` and `flipped_std` of the mirrored picture.

Half precision suffices: its rounding, 2^-11 of the value, is far below the posterior's own standard deviation for
values up to 2^11 of it. The mean is kept apart from the deviation because training draws from the posterior anew in
every epoch.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from data.shards.caching.cache_source import CacheSource, Extra
from seecoder.base_model.facts import pixels_per_cell
from seecoder.base_model.latents import encode_posterior
from seecoder.weights.digests import tensors_sha256

MEAN, STD = "latent_mean", "latent_std"  # columns of a batch, (N, C, h, w)

_ENCODER_PARTS = ("encoder.", "quant_conv.")
# Only what the encoder depends on: autoencoders that differ in their decoders alone share their moments.
_ENCODER_CONFIG = (
    "in_channels",
    "down_block_types",
    "block_out_channels",
    "layers_per_block",
    "act_fn",
    "latent_channels",
    "norm_num_groups",
    "mid_block_add_attention",
    "use_quant_conv",
    "scaling_factor",
    "shift_factor",
)
_STATISTICS = ("latents_mean", "latents_std")


@dataclass(frozen=True, kw_only=True)
class MomentsSource(CacheSource):
    """All that moments depend on, beside the picture.

    Attributes:
        autoencoder: `autoencoder_sha256` of what encoded.
        shape: (C, h, w) of the latent of a square of `size` pixels.
    """

    kind: ClassVar[str] = "moments"
    model: ClassVar[str] = "autoencoder"
    flag: ClassVar[str] = "cached"

    autoencoder: str
    shape: tuple[int, int, int]

    @staticmethod
    def from_vae(vae: Any, size: int, crop: str = "center") -> "MomentsSource":
        """Describe an autoencoder of diffusers for pictures that are cut like `crop`, of `size` pixels or multiples.

        Raises:
            ValueError: `size` is not a multiple of what one latent value covers.
        """
        factor = pixels_per_cell(vae)
        if size < factor or size % factor:
            raise ValueError(f"`size`={size} must be a multiple of {factor}, the pixels that one latent value covers.")
        shape = (int(vae.config["latent_channels"]), size // factor, size // factor)
        dtype, digest = str(vae.dtype).removeprefix("torch."), autoencoder_sha256(vae)
        return MomentsSource(autoencoder=digest, shape=shape, dtype=dtype, size=size, crop=crop)

    @property
    def columns(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Mean and standard deviation."""
        return {MEAN: ("mean", self.shape), STD: ("std", self.shape)}


def autoencoder_sha256(vae: Any) -> str:
    """Digest of the encoding half of an autoencoder: weights (as float32) and the part of its config that matters."""
    weights = {key: value.float() for key, value in vae.state_dict().items() if key.startswith(_ENCODER_PARTS)}
    config = {name: vae.config.get(name) for name in _ENCODER_CONFIG} | {"class": type(vae).__name__}
    # Left out where they are null, so that the digest of a cache made before they counted is still the same.
    config |= {name: vae.config[name] for name in _STATISTICS if vae.config.get(name) is not None}
    return hashlib.sha256(f"{tensors_sha256(weights)}\n{json.dumps(config, sort_keys=True)}".encode()).hexdigest()


@torch.no_grad()
def encode_moments(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the scaled latent, float32.

    Args:
        vae: The frozen autoencoder.
        pixels: (N, 3, H, W) float in [0, 1].

    Returns:
        Two (N, C, h, w) float32 tensors.
    """
    return encode_posterior(vae, (pixels * 2 - 1).to(vae.dtype).contiguous(memory_format=torch.channels_last))


def moments_beside(vae: Any, size: int, flip: bool = False, crop: str = "center") -> Extra:
    """Latent moments by a frozen autoencoder, to be laid beside pictures.

    Args:
        vae: The autoencoder, on the device where it shall compute.
        size: Side of the square pictures in pixels; with buckets of the square of which shapes are multiples.
        flip: Also of the mirrored pictures.
        crop: How the pictures are cut, and into which buckets.
    """

    def compute(pixels: Tensor) -> dict[str, Tensor]:
        return dict(zip(("mean", "std"), encode_moments(vae, pixels), strict=True))

    return Extra(MomentsSource.from_vae(vae, size, crop), compute, vae.device, flip)
