"""What lies beside pictures in a cache, whatever its kind: how it is made, what binds it, how training takes it."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from data.shards.reading.square_image import SquareImage, UnusableSample
from data.shards.shard_set import ShardSet
from seecoder.weights.safetensors_files import WeightsError


@dataclass(frozen=True, kw_only=True)
class CacheSource:
    """All that one kind of cached tensors depends on beside the picture.

    A sample's member holds them in half precision, maybe also those of the mirrored picture (`flipped_...`), and the
    digest of the source that they were made with. Nothing else is trusted: a training whose own source has another
    digest refuses them.

    Attributes:
        kind: Names the entry of the manifest, the member, and what is set to switch it off.
        model: The attribute with the digest of the model.
        flag: Column of a batch, a list: whether the row's tensors are there; False: zeros stand for them.
        dtype: In which the model computed ("float32", "bfloat16").
        size: Side of the square picture in pixels; with buckets of the square of which shapes are multiples.
        crop: How the picture was cut, and into which buckets; "center" is the only cut that is the same in every epoch.
    """

    kind: ClassVar[str]
    model: ClassVar[str]
    flag: ClassVar[str]

    dtype: str
    size: int
    crop: str = "center"

    @classmethod
    def member(cls) -> str:
        """Kind of member that holds the tensors."""
        return f"{cls.kind}.safetensors"

    @classmethod
    def form(cls) -> str:
        """Name and version of the member's format."""
        return f"seecoder.{cls.kind}.1"

    @property
    def columns(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """By column of a batch, the tensor's name in a member and the shape of one row."""
        raise NotImplementedError

    @property
    def digest(self) -> str:
        """64 hexadecimal digits that stand for all attributes."""
        return hashlib.sha256(json.dumps([self.form(), vars(self)], sort_keys=True).encode()).hexdigest()

    @property
    def settings(self) -> dict[str, Any]:
        """All attributes as plain values, as a manifest holds them."""
        return {"digest": self.digest, **json.loads(json.dumps(vars(self)))}

    @classmethod
    def from_settings(cls, about: Mapping[str, Any], **own: Any) -> Self:
        """The source that a manifest describes, but with some values of a training's own."""
        values: dict[str, Any] = {field.name: about.get(field.name) for field in fields(cls)} | own
        return cls(**values)

    def describe(self, about: Mapping[str, Any]) -> str:
        """Say in a few words what the source is that a manifest has as `about`, with the first digits of its hashes."""
        digest, model = (str(about.get(name))[:16] for name in ("digest", self.model))
        crop, _, buckets = str(about.get("crop")).partition(" in ")
        shape = buckets or f"{about.get('size')} x {about.get('size')} pixels"
        return f"{digest} ({self.model} {model} in {about.get('dtype')}, {shape}, {crop} crop)"

    def check(self, where: str, there: str, *, is_same: bool, is_mirrored: bool) -> None:
        """Refuse what was made with another source, or lacks mirrored pictures.

        Args:
            where: What holds it.
            there: What it was made with.
            is_same: Whether that is this source.
            is_mirrored: Whether the mirrored pictures that are needed are there.

        Raises:
            WeightsError: It does not fit.
        """
        if not is_same:
            raise WeightsError(
                f"{where} holds {self.kind} of {there}, but this training's are {self.describe(self.settings)}. Cache "
                f"with the same configuration (`python -m data.cache`), or set `cached_{self.kind}` to false."
            )
        if not is_mirrored:
            raise WeightsError(
                f"{where} has no {self.kind} of mirrored pictures, and `flip` is on. Cache with --flip, or set `flip` "
                f"or `cached_{self.kind}` to false."
            )

    def pack(self, tensors: Mapping[str, Tensor]) -> bytes:
        """Make a member of tensors on the CPU; equal ones give equal bytes."""
        return save(dict(tensors), {self.form(): self.digest})  # one entry: the order of several would be random

    @classmethod
    def unpack(cls, content: bytes) -> tuple[str, dict[str, Tensor]]:
        """Read a member: the digest of its source, and the tensors.

        Raises:
            UnusableSample: It is damaged, or of another format.
        """
        try:
            length = int.from_bytes(content[:8], "little")
            digest = json.loads(content[8 : 8 + length])["__metadata__"][cls.form()]
            return str(digest), load(content)
        except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
            raise UnusableSample(f"bad {cls.kind}", f"its {cls.kind} do not parse: {error!r:.200}") from error

    def read(self, sample: Mapping[str, bytes], sample_id: int, is_flipped: bool, shape: torch.Size) -> dict[str, Any]:
        """Columns of one sample whose picture has `shape` (height, width), with its flag; zeros where there are none.

        Raises:
            WeightsError: The member is of another source, or lacks the mirrored picture. This is no fault of a sample,
                so it ends the run.
            UnusableSample: The member is damaged, or a tensor of another dtype or shape.
        """
        found: dict[str, Any] = {self.flag: self.member() in sample}
        columns = {
            column: (name, (size[0], *(cells * side // self.size for cells, side in zip(size[1:], shape, strict=True))))
            for column, (name, size) in self.columns.items()
        }
        if not found[self.flag]:
            return found | {column: torch.zeros(size, dtype=torch.float16) for column, (_, size) in columns.items()}
        digest, tensors = self.unpack(sample[self.member()])
        prefix = "flipped_" if is_flipped else ""
        is_mirrored = any(name.startswith(prefix) for name in tensors)
        self.check(f"Sample {sample_id}", digest[:16], is_same=digest == self.digest, is_mirrored=is_mirrored)
        for column, (name, size) in columns.items():
            tensor = tensors.get(prefix + name)
            if tensor is None or tensor.dtype != torch.float16 or tensor.shape != size:
                raise UnusableSample(f"bad {self.kind}", f"its {self.kind} lack `{prefix + name}` {size} float16")
            found[column] = tensor
        return found


@dataclass(frozen=True)
class Extra:
    """Computes what a source describes, and lays it beside pictures.

    Attributes:
        source: What it is of.
        compute: Pictures (N, 3, H, W) in [0, 1] -> tensors of N rows by their names in a member.
        device: Where it computes.
        flip: Also of the mirrored pictures.
    """

    source: CacheSource
    compute: Callable[[Tensor], Mapping[str, Tensor]]
    device: torch.device
    flip: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """Entry of the manifest: all that the member depends on beside the picture."""
        return {self.source.kind: {**self.source.settings, "flipped": self.flip}}

    def __call__(self, pixels: Tensor) -> list[bytes | None]:
        """Make the members of (N, 3, H, W) uint8 pictures; None where the result is not finite."""
        inputs = pixels.to(self.device).float() / 255
        columns = dict(self.compute(inputs))
        if self.flip:  # convolutions are not symmetric: a mirrored result is not the result of the mirrored picture
            columns |= {f"flipped_{name}": column for name, column in self.compute(inputs.flip(3)).items()}
        halves = {name: column.half().cpu().contiguous() for name, column in columns.items()}
        rows = [{name: column[row] for name, column in halves.items()} for row in range(len(pixels))]
        return [
            self.source.pack(row) if all(bool(one.isfinite().all()) for one in row.values()) else None for row in rows
        ]


@dataclass(frozen=True)
class WithCaches:
    """A transform that adds the columns and flags of caches to what `SquareImage` gives.

    Attributes:
        picture: Makes the pixels.
        sources: What each cache has to be of.
        sets: In place of `picture`, where data sets have settings of their own: the first sample of each set, and what
            makes its pixels.

    Raises:
        ValueError: Pictures are cut in another way or to another size than a cache is.
    """

    picture: SquareImage
    sources: tuple[CacheSource, ...]
    sets: tuple[tuple[int, SquareImage], ...] = ()

    def __post_init__(self) -> None:
        for source in self.sources:
            if (self.picture.unit, self.picture.cut_name) != (source.size, source.crop):
                raise ValueError(
                    f"`size`={self.picture.unit}, `crop`={self.picture.cut_name!r}: {source.kind} of {source.size} "
                    f"pixels, {source.crop} crop, do not belong to such pictures."
                )

    @property
    def members(self) -> frozenset[str]:
        """What the picture wants, and the caches."""
        return self.picture.members | {source.member() for source in self.sources}

    def __call__(self, sample: Mapping[str, bytes], epoch: int, sample_id: int) -> dict[str, Any]:
        """Make an example with the cached tensors."""
        row = bisect_right(self.sets, sample_id, key=lambda one: one[0]) - 1
        picture = self.sets[row][1] if self.sets else self.picture
        example, is_flipped = picture(sample, epoch, sample_id), picture.is_flipped(epoch, sample_id)
        for source in self.sources:
            example |= source.read(sample, sample_id, is_flipped, example["pixels"].shape[1:])
        return example


def check_cache(shards: ShardSet, picture: SquareImage, source: CacheSource) -> None:
    """Compare what the manifests say of a cache with what a training needs, before it begins.

    Args:
        shards: The shards, cached and raw ones alike.
        picture: How the training cuts pictures.
        source: What it would compute itself.

    Raises:
        WeightsError: A cache is of another source or crop, or lacks mirrored pictures that the training needs.
    """
    for row in shards.shards:
        about = row.settings.get(source.kind)
        if about is None:
            continue
        if picture.crop != "center":
            raise WeightsError(
                f"`crop`={picture.crop!r}: `{row.label}` holds {source.kind} of center crops. Set `crop` to 'center', "
                f"or `cached_{source.kind}` to false."
            )
        is_mirrored, is_same = not picture.flip or bool(about.get("flipped")), about.get("digest") == source.digest
        source.check(f"`{row.label}`", source.describe(about), is_same=is_same, is_mirrored=is_mirrored)
