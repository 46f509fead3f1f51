"""Training pictures from webdataset shards, in the order that the optimizer step alone decides."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from data.shards.buckets import Buckets
from data.shards.caching.cache_source import CacheSource, WithCaches, check_cache
from data.shards.caching.maps import MapsSource
from data.shards.index import needed_kinds
from data.shards.manifest import IMAGE_MEMBERS
from data.shards.plan import Plan
from data.shards.reading.shard_loader import ShardLoader
from data.shards.reading.skips import check_passed
from data.shards.reading.square_image import SquareImage
from data.shards.remote.addresses import redacted
from data.shards.remote.fetcher import Fetcher
from data.shards.shard_set import ShardSet, open_shards
from seecoder.checks import Rule, number, require, whole
from train.sources.data_sets import Places, data_sets, describe_shapes, make_order, open_sets
from train.sources.folder import build_folder, is_built
from train.sources.held_out import HELD_OUT_SEED, check_apart, check_scenes, listed
from train.sources.stage_data import StageData

_READING = {"num_workers": whole(0), "window": whole(1), "ceiling": number(0.0, 1.0), "held_out": whole(0)}
_READING["shards"] = Rule(bool, "one place of shards or several")
_COLUMNS = ("pixels", "frames", "size_ids", "mask")


class ShardPictures(StageData):
    """Square pictures from shards that `python -m data.build` or img2dataset wrote.

    A batch is a dict: `pixels` (N, 3, S, S) uint8 and `keys` (N, 2) epoch and sample number. Where shards hold latent
    moments, also `latent_mean` and `latent_std` (N, C, h, w) float16 and, unless all samples have them, `cached`: a
    list of N that says which. Where shards hold backbone maps, also `map_0`, `map_1`, ... (N, C, h, w) float16 and, on
    the same terms, `maps_cached`. Cached and raw shards are taken alike and may be mixed. With buckets, a
    reference or a mask also `size_ids`, `frames` and `mask`, see `SquareImage`.

    Args:
        batch_size: Samples of one micro-batch of one process.
        shards: Folders or addresses (https, s3, gs, hf) of shards; entries of a list may be `DataSet`s.
        image_size: Height and width in pixels.
        crop: "center", or "random": a place of its own for each (seed, epoch, sample).
        flip: Mirror half of the samples.
        folder: Pictures, with its subfolders, of which `shards` and, with every tenth at most, `held_out_shards` are
            built before the first step, unless they are there.
        dataset: Hugging Face `datasets` set in place of `folder`: one of `save_to_disk`, or a folder of Parquet files.
        dataset_split: Its split.
        image_column: Its column of pictures.
        dataset_from_hub: `dataset` may be a name on the Hub, and is downloaded.
        num_workers: Reading processes of each training process.
        window: Shards whose samples are mixed with each other.
        ceiling: Fraction of unreadable samples above which the run stops.
        cache: Folder into which shards of addresses are fetched.
        cached_moments: Use latent moments that `python -m data.cache` laid beside the pictures.
        cached_maps: Use backbone maps that it laid there.
        held_out_shards: Shards for evaluation, of samples that are not in `shards`; their first ones are used.
        held_out: How many held-out samples.
        held_out_world: Evaluate on scenes of the world, drawn afresh, in place of shards; with `reference` on pairs of
            a scene and the same moved.
        buckets: Shapes for pictures of other proportions than squares; the encoder sees all of each picture. Held-out
            samples stay squares.
        reference: Name of the member that the encoder sees in place of the picture (`000.reference.jpg`): pairs.
        mask: Name of the member that is white where the loss counts (`000.mask.png`).
        seed: Seed of the order, crops and flips.
        image_member: Kind of member that is the picture, such as "jpg"; by default the first of png, jpg, jpeg, webp.
    """

    def __init__(
        self,
        batch_size: int,
        shards: Places,
        image_size: int = 512,
        crop: Literal["center", "random"] = "center",
        flip: bool = False,
        folder: str | None = None,
        dataset: str | None = None,
        dataset_split: str = "train",
        image_column: str = "image",
        dataset_from_hub: bool = False,
        num_workers: int = 0,
        window: int = 8,
        ceiling: float = 0.01,
        cache: str | None = None,
        cached_moments: bool = True,
        cached_maps: bool = True,
        held_out_shards: str | list[str] | None = None,
        held_out: int = 64,
        held_out_world: bool = False,
        buckets: Buckets | None = None,
        reference: str | None = None,
        mask: str | None = None,
        seed: int = 0,
        image_member: str | None = None,
    ) -> None:
        super().__init__(batch_size, seed)
        reading = {"num_workers": num_workers, "window": window, "ceiling": ceiling, "held_out": held_out}
        places = {"shards": shards, "held_out_shards": held_out_shards}
        check_reading(reading | places | {"held_out_world": held_out_world})
        pictures = {"folder": folder, "dataset": dataset, "dataset_split": dataset_split, "image_column": image_column}
        if is_built(pictures):
            pictures |= {"dataset_from_hub": dataset_from_hub, "image_size": image_size}
            pictures |= {"reference": reference, "mask": mask}
            build_folder(reading | pictures | places)
        self.sets, self.places = data_sets(shards), listed(shards)
        self.needed = needed_kinds(image_member, reference, mask)
        if cache is None:  # a missing folder, or one with too many losses, is refused before anything is loaded
            for opened in filter(None, (self.places, listed(held_out_shards))):
                found = open_shards([*opened], needed=self.needed)
                check_passed(found.passed, sum(found.counts), ceiling, log=False)  # their loader says it
        self.transform = SquareImage(
            image_size, crop=crop, flip=flip, seed=seed, buckets=buckets, reference=reference, mask=mask
        )
        self.num_workers, self.window, self.ceiling = num_workers, window, ceiling
        self.fetcher = None if cache is None else Fetcher(Path(cache))
        self.cached_moments, self.cached_maps = cached_moments, cached_maps
        self.held_out_places = held_out_shards
        if held_out_world:
            check_scenes(self.places, seed + HELD_OUT_SEED)
        elif held_out_shards is not None:
            check_apart(self.places, listed(held_out_shards))
        self.num_held_out, self.held_out_world = held_out, held_out_world

    def setup(self, stage: str) -> None:
        """Read or draw the held-out samples."""
        size, self.held_out_scenes = self.transform.size, None
        columns = {"pixels": torch.empty(0, 3, size, size, dtype=torch.uint8)}
        if self.held_out_world:
            from data.world.scenes import move_scenes, sample_scenes
            from train.sources.world_data import draw_bytes

            seed = self.seed + HELD_OUT_SEED
            scenes = sample_scenes(self.num_held_out, seed)
            columns |= {"frames": draw_bytes(scenes, size)} if self.transform.reference else {}
            self.held_out_scenes = move_scenes(scenes, seed) if self.transform.reference else scenes
            columns["pixels"] = draw_bytes(self.held_out_scenes, size)
        elif self.held_out_places is not None:
            columns = self._read_first(listed(self.held_out_places), self.num_held_out)
        self.held_out_pixels, self.held_out_columns = columns["pixels"], columns
        if self.held_out_places is not None and (count := len(self.held_out_pixels)) < self.num_held_out:
            print(f"note: `held_out`={self.num_held_out}, of which {count} are there and usable", flush=True)

    def first_pixels(self, count: int = 64) -> Tensor:
        """The first pictures for training, in the order of their shards: (N, 3, S, S) uint8, always the same."""
        return self._read_first(self.places, count)["pixels"]

    def _read_first(self, places: list[str], count: int) -> dict[str, Tensor]:
        """Columns of the first samples, as a training has them, in squares cut from the centre."""
        shards = open_shards(places, self.fetcher, self.needed)
        loader = ShardLoader(
            shards,
            Plan(shards.counts, shuffle=False),
            replace(self.transform, crop="center", flip=False, buckets=None),
            min(count, 16),
            rank=0,
            world_size=1,
            endless=False,
            ceiling=self.ceiling,
            fetcher=self.fetcher,
        )
        parts: dict[str, list[Tensor]] = defaultdict(list)
        for batch in loader:
            for name in batch.keys() & _COLUMNS:
                parts[name].append(batch[name][batch["valid"]])
            if sum(len(part) for part in parts["pixels"]) >= count:
                break
        return {name: torch.cat(column)[:count] for name, column in parts.items()}

    def train_dataloader(self) -> Any:
        """Micro-batches from the trainer's present step on.

        Raises:
            WeightsError: Shards hold moments or maps that the stage would not compute.
            ValueError: The order of the samples is not the checkpoint's.
        """
        where = self.position()
        shards, first = open_sets(self.sets, self.fetcher, self.needed)
        images = [replace(self.transform, **one.own) for one in self.sets]
        sources = self._cache_sources(shards, images)
        plan = make_order(shards, self.transform.buckets, self.batch_size, self.seed, self.window)
        folder = Path(self.trainer.default_root_dir) if self.trainer is not None else Path()
        loader = ShardLoader(
            shards,
            plan,
            WithCaches(images[0], sources, tuple(zip(first, images, strict=True))),
            self.batch_size,
            rank=where.rank,
            world_size=where.world_size,
            batches=max(1, where.batches),
            num_workers=self.num_workers,
            ceiling=self.ceiling,
            report=folder / "unreadable_samples.txt",
            fetcher=self.fetcher,
            pin_memory=torch.cuda.is_available(),
        )
        counts = hashlib.sha256(repr([(row.shard.name, row.shard.samples) for row in shards.shards]).encode())
        epoch = -(-len(plan) // plan.group) * plan.group  # one may begin where a group begins
        order = {"samples": epoch, "shards": len(shards.shards), "window": self.window}
        order |= {} if self.transform.buckets is None else {"buckets": repr(self.transform.buckets)}
        where = self.position(**order, names=counts.hexdigest()[:12], contents=shards.fingerprint[:12])
        loader.seek(where.samples_before(self.batch_size))
        if where.rank == 0 and (shapes := describe_shapes(shards, self.transform.buckets, self.transform.size)):
            self.notes["pictures"] = shapes
            print(f"note: {shapes}", flush=True)
        return _KeyedBatches(loader, sources)

    def _cache_sources(self, shards: ShardSet, images: Sequence[SquareImage]) -> tuple[CacheSource, ...]:
        """What caches must be of, for those that the stage takes in place of computing it."""
        # Caches are of the usual picture.
        stage: Any = None if self.trainer is None or self.needed[0] != IMAGE_MEMBERS else self.trainer.lightning_module
        found = []
        if self.cached_moments and hasattr(stage, "moments_source"):
            found.append(stage.moments_source(self.transform.unit))
        # It takes time to say what maps must be of.
        if self.cached_maps and self.transform.reference is None and hasattr(stage, "maps_source"):
            has_maps = any(MapsSource.kind in row.settings for row in shards.shards)
            found.append(stage.maps_source(self.transform.size) if has_maps else None)
        crop = replace(self.transform, crop="center").cut_name
        sources = [replace(source, crop=crop) for source in found if source is not None]
        for source in sources:
            for image in images:
                check_cache(shards, image, source)
        return tuple(source for source in sources if all(image.cut_name == source.crop for image in images))


def check_reading(values: Mapping[str, Any]) -> None:
    """Refuse arguments of `ShardPictures` that no shards could make right; a plan asks before there are any.

    Raises:
        ValueError: With name and value.
    """
    for name, rule in _READING.items():
        require(name, values[name], rule)
    if values["held_out_world"] and values["held_out_shards"] is not None:
        places = ", ".join(redacted(place) for place in listed(values["held_out_shards"]))
        raise ValueError(
            f"`held_out_shards`={places} must be left out with `held_out_world`=true. Leave one of them out."
        )


class _KeyedBatches:
    """A shard loader whose batches name their samples as the noise wants it; Lightning sees no state to save."""

    def __init__(self, loader: ShardLoader, sources: tuple[CacheSource, ...]) -> None:
        self.loader, self.sources = loader, sources

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.loader:
            columns = {name: batch[name] for name in _COLUMNS if name in batch}
            columns["keys"] = torch.stack([batch["epoch"], batch["sample_id"]], dim=1)
            for source in self.sources:
                has = batch[source.flag]
                if any(has):  # columns that at least one sample has; with the flag unless all have them
                    columns |= {name: batch[name] for name in source.columns}
                    columns |= {} if all(has) else {source.flag: has}
            yield columns
