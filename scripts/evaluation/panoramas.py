"""Panoramas of the world in numbers: do the windows agree about the background, and does the loop close?

A panorama is one native height and several native widths. Its network is told everything but the background, so that
each window would choose one of its own: what synchronisation is for.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from torch import Tensor

from data.world.reader.attributes import circular_mean
from data.world.reader.readings import read
from data.world.reader.segmentation import Image, chroma, hue_degrees, saturated_mask


def background_degrees(image: Image) -> float:
    """Chroma-weighted mean hue of what is no object, in [0, 360); (3, H, W) in [0, 1]."""
    mask = saturated_mask(image)
    reach = max(2, round(min(mask.shape) / 32))
    outside = ~ndimage.binary_dilation(mask, iterations=reach)
    if not outside.any():
        outside = np.ones_like(mask)
    pixels = image[:, outside].reshape(3, -1, 1)
    return circular_mean(hue_degrees(pixels), chroma(pixels))


def hue_spread(degrees: Sequence[float]) -> float:
    """Mean difference between two of the hues in degrees, 0 to 180; 90 for hues that know nothing of each other."""
    values = np.asarray(degrees)
    first, second = np.triu_indices(len(values), k=1)
    return float(np.abs((values[first] - values[second] + 180) % 360 - 180).mean())


def seam_error(image: Tensor) -> float:
    """Mean step between the last and the first column relative to that between neighbours; 1 is a closed loop."""
    steps = (image.roll(-1, dims=-1) - image).abs().mean(dim=(0, 1))
    return float(steps[-1] / steps[:-1].mean().clamp(min=1e-8))


def native_windows(panorama: Tensor) -> list[Tensor]:
    """The (3, H, H) pictures that lie side by side in a (3, H, W) panorama."""
    side = panorama.shape[-2]
    return [panorama[..., left : left + side] for left in range(0, panorama.shape[-1] - side + 1, side)]


def judged_panoramas(panoramas: Tensor) -> dict[str, float]:
    """Means over panoramas (N, 3, H, W) in [0, 1].

    Returns:
        "hue_spread" between windows in degrees, "objects" for each native window, "seam" at the loop (1: none),
        "horizons".
    """
    spreads = [
        hue_spread([background_degrees(window.numpy()) for window in native_windows(panorama)])
        for panorama in panoramas
    ]
    opened = [_opened(panorama) for panorama in panoramas]
    readings = read(opened)
    windows = panoramas.shape[-1] / panoramas.shape[-2]
    return {
        "hue_spread": float(np.mean(spreads)),
        "objects": float(np.mean([reading.num_objects for reading in readings])) / windows,
        "seam": float(np.mean([seam_error(panorama) for panorama in panoramas])),
        "horizons": float(np.mean([reading.num_horizons for reading in readings])),
    }


def _opened(panorama: Tensor) -> Tensor:
    """The loop cut where there is least of an object, so that none counts twice."""
    covered = saturated_mask(panorama.numpy()).sum(axis=0)
    return panorama.roll(-int(covered.argmin()), dims=-1)
