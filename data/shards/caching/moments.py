"""Latent moments kept beside pictures: what they are of, how they lie in a shard, and how training takes them.

The posterior of a frozen autoencoder for a picture is always the same, so `python -m data.cache` computes it once. A
sample's member `moments.safetensors` holds `mean` and `std` (C, h, w) of the *scaled* latent in half precision, maybe
`flipped_mean` and `flipped_std` of the mirrored picture, and the digest of the `MomentsSource` that they were made
with. Nothing else is trusted: a training whose own source has another digest refuses them.

Half precision suffices: its rounding, 2^-11 of the value, is far below the posterior's own standard deviation for
values up to 2^11 of it. The mean is kept apart from the deviation because training draws from the posterior anew in
every epoch.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from data.shards.caching.tensor_members import get_tensor, pack_rows, unpack_tensors
from data.shards.reading.square_image import SquareImage
from data.shards.shard_set import ShardSet
from seecoder.base_model.facts import pixels_per_cell
from seecoder.base_model.latents import encode_posterior
from seecoder.weights.digests import tensors_sha256
from seecoder.weights.safetensors_files import WeightsError

MEMBER = "moments.safetensors"
MEAN, STD = "latent_mean", "latent_std"  # columns of a batch, (N, C, h, w)
CACHED = "cached"  # column of a batch, a list: whether the row's moments are there; False: zeros stand for them

FORMAT = "seecoder.moments.1"
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


@dataclass(frozen=True)
class MomentsSource:
    """All that moments depend on, beside the picture.

    Attributes:
        autoencoder: `autoencoder_sha256` of what encoded.
        dtype: In which it computed ("float32", "bfloat16").
        size: Side of the square picture in pixels.
        shape: (C, h, w) of the latent.
        crop: How the square was cut; "center" is the only cut that is the same in every epoch.
    """

    autoencoder: str
    dtype: str
    size: int
    shape: tuple[int, int, int]
    crop: str = "center"

    @staticmethod
    def from_vae(vae: Any, size: int) -> "MomentsSource":
        """Describe an autoencoder of diffusers for square pictures of `size` pixels.

        Raises:
            ValueError: `size` is not a multiple of what one latent value covers.
        """
        factor = pixels_per_cell(vae)
        if size < factor or size % factor:
            raise ValueError(f"`size`={size} must be a multiple of {factor}, the pixels that one latent value covers.")
        shape = (int(vae.config["latent_channels"]), size // factor, size // factor)
        return MomentsSource(autoencoder_sha256(vae), str(vae.dtype).removeprefix("torch."), size, shape)

    @property
    def digest(self) -> str:
        """64 hexadecimal digits that stand for all attributes."""
        return hashlib.sha256(json.dumps([FORMAT, asdict(self)], sort_keys=True).encode()).hexdigest()

    def describe(self) -> str:
        """Say it in a few words, with the first digits of the hashes."""
        return _describe({**asdict(self), "digest": self.digest})


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


@dataclass(frozen=True)
class Moments:
    """An `Extra`: latent moments by a frozen autoencoder.

    Attributes:
        vae: The autoencoder, on the device where it shall compute.
        source: Its description.
        flip: Also of the mirrored pictures.
    """

    vae: Any
    source: MomentsSource
    flip: bool = False
    member: str = MEMBER

    @property
    def settings(self) -> dict[str, Any]:
        """Entry `moments` of the manifest: all that they depend on beside the picture."""
        about = asdict(self.source) | {"shape": list(self.source.shape)}
        return {"moments": {"digest": self.source.digest, **about, "flipped": self.flip}}

    def __call__(self, pixels: Tensor) -> list[bytes | None]:
        """Make the members of (N, 3, size, size) uint8 pictures; None where the result is not finite."""
        inputs = pixels.to(self.vae.device).float() / 255
        mean, std = encode_moments(self.vae, inputs)
        columns = {"mean": mean.half(), "std": std.half()}
        if self.flip:  # convolutions are not symmetric: mirrored moments are not the moments of the mirrored picture
            mean, std = encode_moments(self.vae, inputs.flip(3))
            columns |= {"flipped_mean": mean.half(), "flipped_std": std.half()}
        return pack_rows(columns, FORMAT, self.source.digest)


@dataclass(frozen=True)
class WithMoments:
    """A transform that adds `latent_mean`, `latent_std` and `cached` to what `SquareImage` gives.

    Attributes:
        picture: Makes the pixels.
        source: What moments have to be of.

    Raises:
        ValueError: Pictures are cut in another way or to another size than moments are.
    """

    picture: SquareImage
    source: MomentsSource

    def __post_init__(self) -> None:
        if (self.picture.size, self.picture.crop) != (self.source.size, self.source.crop):
            raise ValueError(
                f"`size`={self.picture.size}, `crop`={self.picture.crop!r}: moments of {self.source.size} pixels, "
                f"{self.source.crop} crop, do not belong to such pictures."
            )

    @property
    def members(self) -> frozenset[str]:
        """What the picture wants, and the moments."""
        return self.picture.members | {MEMBER}

    def __call__(self, sample: Mapping[str, bytes], epoch: int, sample_id: int) -> dict[str, Any]:
        """Make an example with the cached tensors, or with zeros where the sample has none.

        Raises:
            WeightsError: The moments are of another source; this is no fault of a sample, so it ends the run.
        """
        example = self.picture(sample, epoch, sample_id)
        if MEMBER not in sample:
            empty = torch.zeros(self.source.shape, dtype=torch.float16)
            return example | {MEAN: empty, STD: empty, CACHED: False}
        digest, tensors = unpack_tensors(sample[MEMBER], FORMAT)
        if digest != self.source.digest:
            raise WeightsError(_mismatch(f"Sample {sample_id}", digest[:16], self.source))
        prefix = "flipped_" if self.picture.is_flipped(epoch, sample_id) else ""
        if prefix and "flipped_mean" not in tensors:
            raise WeightsError(_unflipped(f"Sample {sample_id}"))
        mean, std = (
            get_tensor(tensors, prefix + name, torch.float16, self.source.shape, "moments") for name in ("mean", "std")
        )
        return example | {MEAN: mean, STD: std, CACHED: True}


def check_moments(shards: ShardSet, picture: SquareImage, source: MomentsSource) -> int:
    """Compare what the manifests say of moments with what a training needs, before it begins.

    Args:
        shards: The shards, cached and raw ones alike.
        picture: How the training cuts pictures.
        source: What it would compute itself.

    Returns:
        Number of samples in shards with moments.

    Raises:
        WeightsError: Moments are of another source or crop, or lack mirrored ones that the training needs.
    """
    samples = 0
    for row in shards.shards:
        about = row.settings.get("moments")
        if about is None:
            continue
        if picture.crop != source.crop:
            raise WeightsError(
                f"`crop`={picture.crop!r}: `{row.label}` holds moments of {source.crop} crops. Set `crop` to "
                f"'{source.crop}', or `cached_moments` to false."
            )
        if about.get("digest") != source.digest:
            there = _describe(about)
            raise WeightsError(_mismatch(f"`{row.label}`", there, source))
        if picture.flip and not about.get("flipped"):
            raise WeightsError(_unflipped(f"`{row.label}`"))
        samples += row.shard.samples
    return samples


def _describe(about: Mapping[str, Any]) -> str:
    digest, autoencoder = (str(about.get(name))[:16] for name in ("digest", "autoencoder"))
    side = f"{about.get('size')} x {about.get('size')} pixels, {about.get('crop')} crop"
    return f"{digest} (autoencoder {autoencoder} in {about.get('dtype')}, {side})"


def _mismatch(where: str, there: str, source: MomentsSource) -> str:
    return (
        f"{where} holds moments of {there}, but this training's are {source.describe()}. Cache with the same base, "
        "size and dtype (`python -m data.cache`), or set `cached_moments` to false."
    )


def _unflipped(where: str) -> str:
    return (
        f"{where} has no moments of mirrored pictures, and `flip` is on. Cache with --flip, or set `flip` or "
        "`cached_moments` to false."
    )
