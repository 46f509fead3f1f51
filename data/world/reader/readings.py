"""The reader: says from pixels alone what a picture of the world shows. Deterministic, nothing in it is learned.

It turns opinions about pictures into counts: does a variation keep its input's hue? how many objects does a sampler
make at four times the training size? Every picture size is read; sizes of regions are judged in pixels of the
base's native size, so that a copy of the object counts however large the picture is.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from data.world.reader.attributes import background_hue, count_horizons, object_hue, shape_fit, texture
from data.world.reader.segmentation import (
    NATIVE_SIDE,
    OBJECT_AREA,
    SPECK_AREA,
    Image,
    Region,
    ink_mask,
    regions,
    saturated_mask,
)
from data.world.scenes import ATTRIBUTES

_COUNTED = ("objects", "specks", "horizons")


@dataclass(frozen=True)
class ReadObject:
    """One object as read.

    Attributes:
        shape: Index into `SHAPES`.
        fit: Overlap of the region with the best template of that shape, in [0, 1].
        hue: Index into `HUES`.
        texture: Index into `TEXTURES`.
        box: (top, left, bottom, right) as fractions of the picture's height and width.
    """

    shape: int
    fit: float
    hue: int
    texture: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Reading:
    """What a picture shows.

    Attributes:
        objects: Regions of at least a quarter of the smallest object *of the native size, in pixels*, largest first. A
            copy of the object that a sampler drew at native size counts at any picture size.
        num_specks: Saturated regions below that size.
        background: Index into `BACKGROUNDS`.
        num_horizons: Mean number of ground bands per column.
        outline: Share of the largest object's rim that is ink: near 1 in the style "outlined", 0 in "shaded".
    """

    objects: tuple[ReadObject, ...]
    num_specks: int
    background: int
    num_horizons: float
    outline: float

    @property
    def num_objects(self) -> int:
        """Number of objects, see `objects`."""
        return len(self.objects)

    @property
    def main(self) -> ReadObject | None:
        """The largest object, if there is any."""
        return self.objects[0] if self.objects else None


def read(pixels: Tensor | Iterable[Tensor]) -> list[Reading]:
    """Read pictures.

    Args:
        pixels: (N, 3, H, W) in [0, 1], or an iterable of (3, H, W), at least 16 pixels a side.

    Returns:
        One reading per picture.

    Raises:
        ValueError: A picture has another shape, is smaller, or holds values that are not finite.
    """
    return [_read_one(_checked(image)) for image in pixels]


def _checked(image: Tensor) -> Image:
    if image.ndim != 3 or image.shape[0] != 3 or min(image.shape[1:]) < 16:
        raise ValueError(f"a picture has shape {tuple(image.shape)}; (3, H, W) with H, W >= 16 is needed.")
    if not torch.isfinite(image).all():
        raise ValueError("a picture holds values that are not finite.")
    return image.detach().float().clamp(0, 1).cpu().numpy()


def _read_one(image: Image) -> Reading:
    mask, ink = saturated_mask(image), ink_mask(image)
    found = regions(image, mask)
    covered = mask | ndimage.binary_dilation(ink) if ink.any() else mask
    min_area = OBJECT_AREA * min(NATIVE_SIDE, *mask.shape) ** 2
    counted = [region for region in found if region.area >= SPECK_AREA]
    objects = [region for region in counted if region.area >= min_area]
    return Reading(
        objects=tuple(_read_object(image, region) for region in objects),
        num_specks=len(counted) - len(objects),
        background=background_hue(image, covered),
        num_horizons=count_horizons(image, covered),
        outline=_inked_rim(ink, objects[0]) if objects and ink.any() else 0.0,
    )


def _inked_rim(ink: np.ndarray, region: Region) -> float:
    """Share of a region's rim, two pixels of a native picture from its edge, that is ink."""
    mask = np.zeros_like(ink)
    mask[region.box][region.mask] = True
    step = max(1, round(min(ink.shape) / NATIVE_SIDE))
    inner = ndimage.binary_dilation(mask, iterations=step)
    rim = ndimage.binary_dilation(inner, iterations=step) & ~inner
    return float(ink[rim].mean()) if rim.any() else 0.0


def _read_object(image: Image, region: Region) -> ReadObject:
    shape, fit = shape_fit(region)
    rows, columns = region.box
    height, width = image.shape[1:]
    return ReadObject(
        shape=shape,
        fit=fit,
        hue=object_hue(image, region),
        texture=texture(image, region),
        box=(rows.start / height, columns.start / width, rows.stop / height, columns.stop / width),
    )


def agreement(readings: list[Reading], truth: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Compare readings with true attributes.

    Args:
        readings: N readings.
        truth: (N,) indices under "shape", "hue", "texture", "background".

    Returns:
        (N,) bool arrays under "count" (exactly one object), the four names, and "all"; the object's are those of the
        largest region.
    """
    main = [reading.main for reading in readings]
    right = {"count": np.array([reading.num_objects == 1 for reading in readings])}
    for name in ("shape", "hue", "texture"):
        values = np.array([-1 if item is None else getattr(item, name) for item in main])
        right[name] = values == truth[name].numpy()
    right["background"] = np.array([reading.background for reading in readings]) == truth["background"].numpy()
    right["all"] = np.logical_and.reduce(list(right.values()))
    return right


def rates(readings: Sequence[Reading], scenes: Any) -> dict[str, float]:
    """Share of pictures that agree with their scenes, and means of what is counted.

    Args:
        readings: N readings.
        scenes: `Scenes`, or what else has its attributes, (N,) each; None where nothing is known of them.

    Returns:
        "count" (exactly one object), the four attributes and "all" of these at once (with scenes), all in [0, 1]; mean
        "objects", "specks" and "horizons" a picture.
    """
    counts = {name: [getattr(reading, f"num_{name}") for reading in readings] for name in _COUNTED}
    counted = {"count": float(np.mean(np.equal(counts["objects"], 1)))}
    counted |= {name: float(np.mean(numbers)) for name, numbers in counts.items()}
    if scenes is None:
        return counted
    right = agreement(list(readings), {name: getattr(scenes, name) for name in ATTRIBUTES})
    return {name: float(values.mean()) for name, values in right.items()} | counted


def score(pixels: Tensor, paths: Sequence[Path]) -> dict[str, float]:
    """The `rates` of a picture, (3, H, W) in [0, 1].

    Args:
        pixels: The picture.
        paths: Of the picture, and of what it was made from. The first that has JSON of the same name beside it, as
            shards of the world have it, says what the scene is.
    """
    beside = [path.with_suffix(".json") for path in paths if path.with_suffix(".json").is_file()]
    try:
        named = dict(json.loads(beside[0].read_text())) if beside else {}
    except (ValueError, TypeError, RecursionError):  # something else's
        named = {}
    if any(named.get(name) not in names for name, names in ATTRIBUTES.items()):
        return rates(read([pixels]), None)
    truth = {name: torch.tensor([names.index(named[name])]) for name, names in ATTRIBUTES.items()}
    return rates(read([pixels]), SimpleNamespace(**truth))
