"""The background's horizon count: how often a column of the picture goes from sky to ground."""

import numpy as np
from scipy import ndimage

from data.world.reader.segmentation import Image, Mask

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
