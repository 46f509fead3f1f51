"""Backbone maps kept beside pictures, for small sets: what a frozen backbone sees in a picture, in half precision.

Large: 5.5 MB for a picture of 512 x 512 pixels and a Swin-L, against some 0.1 MB of the picture itself. Worth it where
the same few pictures are seen many times.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from data.shards.caching.cache_source import CacheSource, Extra
from seecoder import SeeCoder
from seecoder.weights.digests import tensors_sha256

_BACKBONE_CONFIG = ("backbone", "backbone_args", "image_mean", "image_std")


@dataclass(frozen=True, kw_only=True)
class MapsSource(CacheSource):
    """All that maps depend on, beside the picture.

    Attributes:
        backbone: Digest of the backbone's weights (as float32), its configuration, and how pixels are standardised.
        shapes: (C, h, w) of each map that the decoder reads, finest first.
    """

    kind: ClassVar[str] = "maps"
    model: ClassVar[str] = "backbone"
    flag: ClassVar[str] = "maps_cached"

    backbone: str
    shapes: tuple[tuple[int, int, int], ...]

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
        dtype = str(first.dtype).removeprefix("torch.")
        return MapsSource(backbone=digest, shapes=shapes, dtype=dtype, size=size)

    @property
    def columns(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """`map_0`, `map_1`, ..., (N, C, h, w) each."""
        return {map_column(level): (map_column(level), shape) for level, shape in enumerate(self.shapes)}


def map_column(level: int) -> str:
    """Name of a map in a batch, (N, C, h, w)."""
    return f"map_{level}"


def maps_beside(encoder: SeeCoder, size: int, flip: bool = False) -> Extra:
    """Maps by a frozen backbone, to be laid beside pictures.

    Args:
        encoder: Whose backbone, on the device where it shall compute.
        size: Side of the square pictures in pixels.
        flip: Also of the mirrored pictures.
    """

    @torch.no_grad()
    def compute(pixels: Tensor) -> dict[str, Tensor]:
        return {map_column(level): value for level, value in enumerate(encoder.compute_maps(pixels))}

    device = next(encoder.backbone.parameters()).device
    return Extra(MapsSource.from_encoder(encoder, size), compute, device, flip)
