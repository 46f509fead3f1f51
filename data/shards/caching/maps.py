"""Backbone maps kept beside pictures, for small sets: what a frozen backbone sees in a picture, in half precision.

Large: 5.5 MB for a picture of 512 x 512 pixels and a Swin-L, against some 0.1 MB of the picture itself. Worth it where
the same few pictures are seen many times.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from data.shards.caching.tensor_members import get_tensor, pack_rows, unpack_tensors
from data.shards.reading.square_image import SquareImage, Transform
from data.shards.shard_set import ShardSet
from seecoder import SeeCoder
from seecoder.weights.digests import tensors_sha256
from seecoder.weights.safetensors_files import WeightsError

MEMBER = "maps.safetensors"
MAPS_CACHED = "maps_cached"  # column of a batch, a list: whether the row's maps are there; False: zeros stand for them

_FORMAT = "seecoder.maps.1"
_BACKBONE_CONFIG = ("backbone", "backbone_args", "image_mean", "image_std")


@dataclass(frozen=True)
class MapsSource:
    """All that maps depend on, beside the picture.

    Attributes:
        backbone: Digest of the backbone's weights (as float32), its configuration, and how pixels are standardised.
        dtype: In which it computed.
        size: Side of the square picture in pixels.
        shapes: (C, h, w) of each map that the decoder reads, finest first.
        crop: How the square was cut.
    """

    backbone: str
    dtype: str
    size: int
    shapes: tuple[tuple[int, int, int], ...]
    crop: str = "center"

    @staticmethod
    def from_encoder(encoder: SeeCoder, size: int) -> "MapsSource":
        """Describe the backbone of an encoder for square pictures of `size` pixels."""
        backbone = encoder.backbone
        weights = {key: value.float() for key, value in backbone.state_dict().items()}
        config = json.dumps([encoder.config[name] for name in _BACKBONE_CONFIG], sort_keys=True)
        digest = hashlib.sha256(f"{tensors_sha256(weights)}\n{config}".encode()).hexdigest()
        first = next(backbone.parameters())
        maps = encoder.compute_maps(torch.zeros(1, 3, size, size, device=first.device))
        shapes = tuple((level.shape[1], level.shape[2], level.shape[3]) for level in maps)
        return MapsSource(digest, str(first.dtype).removeprefix("torch."), size, shapes)

    @property
    def digest(self) -> str:
        """64 hexadecimal digits that stand for all attributes."""
        return hashlib.sha256(json.dumps([_FORMAT, asdict(self)], sort_keys=True).encode()).hexdigest()


def map_column(level: int) -> str:
    """Name of a map in a batch, (N, C, h, w)."""
    return f"map_{level}"


@dataclass(frozen=True)
class Maps:
    """An `Extra`: maps by a frozen backbone.

    Attributes:
        encoder: Whose backbone, on the device where it shall compute.
        source: Its description.
        flip: Also of the mirrored pictures.
    """

    encoder: SeeCoder = field(repr=False)
    source: MapsSource
    flip: bool = False
    member: str = MEMBER

    @property
    def settings(self) -> dict[str, Any]:
        """Entry `maps` of the manifest: all that they depend on beside the picture."""
        about = asdict(self.source) | {"shapes": [list(shape) for shape in self.source.shapes]}
        return {"maps": {"digest": self.source.digest, **about, "flipped": self.flip}}

    def __call__(self, pixels: Tensor) -> list[bytes | None]:
        """Make the members of (N, 3, size, size) uint8 pictures; None where the result is not finite."""
        inputs = pixels.to(next(self.encoder.backbone.parameters()).device).float() / 255
        columns = self._columns("", inputs)
        if self.flip:
            columns |= self._columns("flipped_", inputs.flip(3))
        return pack_rows(columns, _FORMAT, self.source.digest)

    @torch.no_grad()
    def _columns(self, prefix: str, inputs: Tensor) -> dict[str, Tensor]:
        maps = self.encoder.compute_maps(inputs)
        return {prefix + map_column(level): value.half() for level, value in enumerate(maps)}


@dataclass(frozen=True)
class WithMaps:
    """A transform that adds `map_0`, `map_1`, ... and `maps_cached` to what another gives.

    Attributes:
        inner: Makes everything else.
        picture: How pictures are cut.
        source: What maps have to be of.

    Raises:
        ValueError: Pictures are cut in another way or to another size than maps are.
    """

    inner: Transform
    picture: SquareImage
    source: MapsSource

    def __post_init__(self) -> None:
        if (self.picture.size, self.picture.crop) != (self.source.size, self.source.crop):
            raise ValueError(
                f"`size`={self.picture.size}, `crop`={self.picture.crop!r}: maps of {self.source.size} pixels, "
                f"{self.source.crop} crop, do not belong to such pictures."
            )

    @property
    def members(self) -> frozenset[str]:
        """What `inner` wants, and the maps."""
        return self.inner.members | {MEMBER}

    def __call__(self, sample: Mapping[str, bytes], epoch: int, sample_id: int) -> dict[str, Any]:
        """Make an example with the cached tensors, or with zeros where the sample has none.

        Raises:
            WeightsError: The maps are of another source.
        """
        example = self.inner(sample, epoch, sample_id)
        shapes = list(enumerate(self.source.shapes))
        if MEMBER not in sample:
            empty = {map_column(level): torch.zeros(shape, dtype=torch.float16) for level, shape in shapes}
            return example | empty | {MAPS_CACHED: False}
        digest, tensors = unpack_tensors(sample[MEMBER], _FORMAT)
        if digest != self.source.digest:
            raise WeightsError(_mismatch(f"Sample {sample_id}", digest, self.source))
        prefix = "flipped_" if self.picture.is_flipped(epoch, sample_id) else ""
        if prefix and prefix + map_column(0) not in tensors:
            raise WeightsError(_unflipped(f"Sample {sample_id}"))
        maps = {
            map_column(level): get_tensor(tensors, prefix + map_column(level), torch.float16, shape, "maps")
            for level, shape in shapes
        }
        return example | maps | {MAPS_CACHED: True}


def has_maps(shards: ShardSet) -> bool:
    """Whether the manifest of any shard says that there are maps."""
    return any("maps" in row.settings for row in shards.shards)


def check_maps(shards: ShardSet, picture: SquareImage, source: MapsSource) -> None:
    """Compare what the manifests say of maps with what a training needs, before it begins.

    Raises:
        WeightsError: Maps are of another source or crop, or lack mirrored ones that the training needs.
    """
    for row in shards.shards:
        about = row.settings.get("maps")
        if about is None:
            continue
        if about.get("digest") != source.digest or picture.crop != source.crop:
            raise WeightsError(_mismatch(f"`{row.label}`", str(about.get("digest")), source))
        if picture.flip and not about.get("flipped"):
            raise WeightsError(_unflipped(f"`{row.label}`"))


def _mismatch(where: str, there: str, source: MapsSource) -> str:
    return (
        f"{where} holds backbone maps {there[:16]}, but this training's are {source.digest[:16]} (backbone "
        f"{source.backbone[:16]} in {source.dtype}, {source.size} x {source.size} pixels, {source.crop} crop). Cache "
        "with the same configuration (`python -m data.cache --maps`), or set `cached_maps` to false."
    )


def _unflipped(where: str) -> str:
    return (
        f"{where} has no maps of mirrored pictures, and `flip` is on. Cache with --flip, or set `flip` or "
        "`cached_maps` to false."
    )
