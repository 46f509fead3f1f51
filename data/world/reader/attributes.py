"""What a picture shows: hue, shape and texture of its regions, and how often its columns go from sky to ground."""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from data.world.reader.segmentation import Image, Mask, Region, chroma, hue_degrees
from data.world.render import SIGNED_DISTANCES
from data.world.scenes import BACKGROUND_OFFSET, BACKGROUND_STEP, BACKGROUNDS, HUE_STEP, HUES, SHAPES

_TEMPLATE_SIDE = 40
_TEMPLATE_ROTATIONS = np.linspace(-0.36, 0.36, 13)
_SOLID_CONTRAST = 0.10  # std over mean of the value; a two-tone pattern has 0.33, a solid object below 0.03
_STRIPE_COHERENCE = 0.5  # structure-tensor coherence: 1 for stripes, 0 for a checkerboard


def circular_mean(degrees: Image, weights: Image) -> float:
    """Weighted mean direction in [0, 360)."""
    radians = np.radians(degrees)
    return float(np.degrees(np.arctan2((weights * np.sin(radians)).sum(), (weights * np.cos(radians)).sum())) % 360)


def object_hue(image: Image, region: Region) -> int:
    """Index into `HUES` of a region's chroma-weighted mean hue."""
    inside = image[(slice(None), *region.box)][:, region.mask].reshape(3, -1, 1)
    mean = circular_mean(hue_degrees(inside), chroma(inside))
    return round(mean / HUE_STEP) % len(HUES)


def background_degrees(image: Image, object_mask: Mask) -> float:
    """Chroma-weighted mean hue outside the widened object mask, in [0, 360)."""
    reach = max(2, round(min(object_mask.shape) / 32))
    outside = ~ndimage.binary_dilation(object_mask, iterations=reach)
    if outside.sum() < 0.05 * outside.size:  # nearly all is object
        outside = ~object_mask
    pixels = image[:, outside].reshape(3, -1, 1)
    return circular_mean(hue_degrees(pixels), chroma(pixels))


def background_hue(image: Image, object_mask: Mask) -> int:
    """Index into `BACKGROUNDS` of the mean hue outside the widened object mask."""
    return round((background_degrees(image, object_mask) - BACKGROUND_OFFSET) / BACKGROUND_STEP) % len(BACKGROUNDS)


@cache
def _templates() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Box-normalised masks of every shape at every rotation, and the shape index of each."""
    side = 200
    axis = (torch.arange(side) + 0.5) / side * 2.6 - 1.3
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    masks, owners = [], []
    for index, name in enumerate(SHAPES):
        for rotation in _TEMPLATE_ROTATIONS:
            cos, sin = float(np.cos(rotation)), float(np.sin(rotation))
            mask = (SIGNED_DISTANCES[name](cos * y - sin * x, sin * y + cos * x) < 0).numpy()
            (box,) = ndimage.find_objects(mask.astype(np.int32))
            masks.append(_box_normalised(mask[box]))
            owners.append(index)
    return np.stack(masks), np.asarray(owners)


def _box_normalised(mask: Mask) -> NDArray[np.float32]:
    """Resample a mask that fills its box to a square of fixed side; flattened."""
    rows = (np.arange(_TEMPLATE_SIDE) + 0.5) * mask.shape[0] / _TEMPLATE_SIDE - 0.5
    columns = (np.arange(_TEMPLATE_SIDE) + 0.5) * mask.shape[1] / _TEMPLATE_SIDE - 0.5
    grid = np.meshgrid(rows, columns, indexing="ij")
    return (
        (ndimage.map_coordinates(mask.astype(np.float32), grid, order=1, mode="nearest") > 0.5)
        .astype(np.float32)
        .ravel()
    )


def shape_fit(region: Region) -> tuple[int, float]:
    """Best shape and its overlap (intersection over union) with the box-normalised region, in [0, 1]."""
    templates, owners = _templates()
    own = _box_normalised(region.mask)
    intersection = templates @ own
    overlap = intersection / (templates.sum(1) + own.sum() - intersection)
    best = int(overlap.argmax())
    return int(owners[best]), float(overlap[best])


def texture(image: Image, region: Region) -> int:
    """Index into `TEXTURES` (solid, stripes, checker) from the value channel inside the region's eroded mask."""
    value = image[(slice(None), *region.box)].max(0)
    scale = max(region.mask.shape) / 32  # pixels per unit of the analysis: an object is some 32 units wide
    inner = _eroded(region.mask, max(1, round(1.5 * scale)))
    smooth = _masked_blur(value, region.mask, 0.5 * scale)
    values = smooth[inner]
    if values.std() / max(float(values.mean()), 1e-6) < _SOLID_CONTRAST:
        return 0
    return 1 if _coherence(smooth, inner) > _STRIPE_COHERENCE else 2


def _eroded(mask: Mask, reach: int) -> Mask:
    """Erode by `reach`, or by less where nothing of use would be left."""
    distance = ndimage.distance_transform_cdt(np.pad(mask, 1), metric="taxicab")[1:-1, 1:-1]
    while reach > 1 and (distance > reach).sum() < 0.25 * mask.sum():
        reach -= 1
    inner = distance > reach
    return inner if inner.any() else mask


def _masked_blur(value: Image, mask: Mask, sigma: float) -> Image:
    """Gaussian blur that only mixes pixels of the mask, so that no background leaks in."""
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma)
    return (ndimage.gaussian_filter(value * mask, sigma) / np.maximum(weight, 1e-6)).astype(np.float32)


def _coherence(value: Image, inside: Mask) -> float:
    """Coherence (l1 - l2) / (l1 + l2) of the structure tensor summed over the mask: 1 for one direction, 0 for two."""
    down, across = np.gradient(value, axis=0), np.gradient(value, axis=1)
    yy, xx = float((down[inside] ** 2).sum()), float((across[inside] ** 2).sum())
    yx = float((down[inside] * across[inside]).sum())
    return float(np.hypot(yy - xx, 2 * yx) / max(yy + xx, 1e-12))


_MIN_CONTRAST = 0.10  # of value between sky and ground; below there is no horizon to see
_MIN_RUN = 0.04  # of the height; a thinner band of ground is grain


def count_horizons(image: Image, object_mask: Mask) -> float:
    """Mean number of ground bands per column; 1.0 for every true scene, more where a sampler repeats the background.

    Args:
        image: (3, H, W) in [0, 1].
        object_mask: (H, W); object pixels take the value of the background above them.
    """
    height, _ = object_mask.shape
    value = image.max(0)
    free = ~ndimage.binary_dilation(object_mask, iterations=max(1, round(height / 64)))
    if free.sum() < 0.05 * free.size:
        return 0.0
    low, high = np.percentile(value[free], [8, 92])
    if high - low < _MIN_CONTRAST:
        return 0.0
    smooth = ndimage.uniform_filter1d(_fill_down(value, free), max(1, round(height * 0.03)), axis=0, mode="nearest")
    ground = smooth < (low + high) / 2
    run = max(2, round(height * _MIN_RUN))
    ground = ndimage.binary_opening(
        np.pad(ground, ((run, run), (0, 0)), mode="edge"), np.ones((run, 1), dtype=np.bool_)
    )[run:-run]
    starts = ground[1:] & ~ground[:-1]
    return float((starts.sum(0) + ground[0]).mean())


def _fill_down(value: Image, free: Mask) -> Image:
    """Give covered pixels the value of the nearest free pixel above them, or below where there is none above."""
    rows = np.arange(len(value))[:, None]
    above = np.maximum.accumulate(np.where(free, rows, -1), axis=0)
    below = np.minimum.accumulate(np.where(free, rows, len(value))[::-1], axis=0)[::-1]
    source = np.where(above >= 0, above, np.minimum(below, len(value) - 1))
    return np.take_along_axis(value, source, axis=0)
