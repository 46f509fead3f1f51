"""The rows of the panorama table, and how one is measured."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from data.world.scenes import sample_scenes
from scripts.evaluation.counts import Sampling, sample_pictures
from scripts.evaluation.highres import Cell, counted
from scripts.evaluation.panoramas import judged_panoramas, panorama_context
from seecoder.sampling import MultiDiffusion, SyncDiffusion
from seecoder.sampling.methods.perceptual import pyramid_distance

STRIDE = 4  # cells: a quarter of the world's native side
PUBLISHED_WEIGHT = 20.0


@dataclass(frozen=True)
class PanoramaRow:
    """How panoramas come about: a name and one method."""

    label: str
    method: Any


def synchronised(weight: float, threshold: float = 0.2) -> SyncDiffusion:
    """A closed loop that is synchronised with this weight for this share of the trajectory.

    The loss is the one that needs no weights, whatever is installed: the table has to be the same everywhere.
    """
    return SyncDiffusion(
        stride=STRIDE, closed_loop=True, sync_weight=weight, sync_threshold=threshold, loss=pyramid_distance
    )


def panorama_rows() -> tuple[PanoramaRow, ...]:
    """All rows, in the order of the table."""
    return (
        PanoramaRow("MultiDiffusion, open", MultiDiffusion(stride=STRIDE)),
        PanoramaRow("MultiDiffusion, closed loop", MultiDiffusion(stride=STRIDE, closed_loop=True)),
        *(
            PanoramaRow(f"SyncDiffusion, closed loop, weight {weight:g}", synchronised(weight))
            for weight in (PUBLISHED_WEIGHT, 100.0, 500.0, 2000.0)
        ),
    )


def chosen_panoramas(names: Sequence[str]) -> tuple[list[PanoramaRow], list[str]]:
    """Panorama rows by name, all if no name is one of theirs; and the names that are not."""
    rows = panorama_rows()
    wanted = {name.strip().lower() for name in names}
    found = [row for row in rows if row.label.lower() in wanted]
    others = [name for name in names if name.strip().lower() not in {row.label.lower() for row in rows}]
    return found or list(rows), others


def measure_panoramas(
    row: PanoramaRow, pipeline: Any, conditioner: Any, count: int, sampling: Sampling, seed_offset: int = 500_000
) -> Cell:
    """Sample panoramas and judge them.

    Args:
        row: How.
        pipeline: A `SeeCoderPipeline` of the world's base.
        conditioner: Its conditioner; background and layout are not told.
        count: How many.
        sampling: Steps, guidance, seeds; its size is the panoramas'.
        seed_offset: Added to the seed of the scenes, which are others than those of the pictures.
    """
    context = panorama_context(conditioner, sample_scenes(count, sampling.seed + seed_offset))
    native = pipeline.unet.config.sample_size
    started = time.perf_counter()
    with counted(pipeline.unet, (native, native)) as work:
        pictures = sample_pictures(pipeline, context.to(pipeline.unet.dtype), sampling, method=row.method)
    seconds = time.perf_counter() - started
    numbers = judged_panoramas(pictures) | {"windows": work.windows / count, "seconds": seconds / count}
    return Cell(pictures.float() if pictures.dtype != torch.float32 else pictures, numbers)
