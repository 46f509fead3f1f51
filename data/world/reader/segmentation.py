"""Find saturated regions: the world's objects and the specks that sampling above the training resolution leaves behind.

Objects have HSV saturation of at least 0.75 and a value that makes their darkest tone's chroma 0.36; the most colourful
sky has 0.24. The threshold stands halfway, and a small closing mends edges where object and background mix to grey.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

CHROMA_THRESHOLD = 0.30
NATIVE_SIDE = 64  # pixels; the size at which the world's base is trained
SMALLEST_OBJECT = 1.69 * 0.19**2  # frame areas: the star at the smallest radius
OBJECT_AREA = 0.25 * SMALLEST_OBJECT  # frame areas; a region below is a speck
INK_VALUE = (
    0.3  # below is the outline of the style "outlined", blurred by an autoencoder too; the darkest ground has 0.33
)
SPECK_AREA = 4.0  # native pixels; a region below is noise and not counted at all
_HUE_BINS = 72
_HUE_SMOOTHING = 1.6  # bins; 8 degrees
_CROSS = ndimage.generate_binary_structure(2, 1)

Mask = NDArray[np.bool_]
Image = NDArray[np.float32]


@dataclass(frozen=True)
class Region:
    """A connected saturated region: its mask within `box`, and its area in pixels."""

    mask: Mask
    box: tuple[slice, slice]
    area: int


def chroma(image: Image) -> Image:
    """Largest minus smallest channel; (3, H, W) -> (H, W)."""
    return image.max(0) - image.min(0)


def hue_degrees(image: Image) -> Image:
    """HSV hue of every pixel in [0, 360); (3, H, W) -> (H, W)."""
    red, green, blue = image
    return np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)) % 360


def ink_mask(image: Image) -> Mask:
    """Pixels darker than anything that a scene has but an outline; (3, H, W) -> (H, W)."""
    return image.max(0) < INK_VALUE


def saturated_mask(image: Image) -> Mask:
    """Saturated pixels after a closing and an opening that scale with the picture; (3, H, W) -> (H, W)."""
    mask = chroma(image) > CHROMA_THRESHOLD
    reach = max(1, round(min(mask.shape) / 128))
    padded = np.pad(mask, reach, mode="edge")  # a closing must not eat what touches the border
    padded = ndimage.binary_closing(padded, _CROSS, iterations=reach)
    padded = ndimage.binary_opening(padded, _CROSS)
    return padded[reach:-reach, reach:-reach]


def regions(image: Image, mask: Mask) -> list[Region]:
    """Split a mask into connected regions, and regions that touch but differ in hue into their parts; largest first.

    Args:
        image: (3, H, W) in [0, 1].
        mask: (H, W) from `saturated_mask`.
    """
    labels, count = ndimage.label(mask, _CROSS)
    found: list[Region] = []
    object_pixels = OBJECT_AREA * min(NATIVE_SIDE, *mask.shape) ** 2
    for label, box in enumerate(ndimage.find_objects(labels, count), start=1):
        rows, columns = box
        part = labels[box] == label
        found.extend(_split_by_hue(image[:, rows, columns], part, (rows, columns), object_pixels))
    return sorted(found, key=lambda region: -region.area)


def _split_by_hue(image: Image, mask: Mask, box: tuple[slice, slice], min_pixels: float) -> list[Region]:
    """Part a region between hues that each fill at least `min_pixels` connected pixels."""
    area = int(mask.sum())
    whole = [Region(mask, box, area)]
    if area < 2 * min_pixels:
        return whole
    hue = hue_degrees(image)
    peaks = _hue_peaks(hue[mask])
    if len(peaks) < 2:
        return whole
    distance = np.abs((hue[None] - np.asarray(peaks)[:, None, None] + 180) % 360 - 180)
    nearest = distance.argmin(0)
    parts: list[Region] = []
    for index in range(len(peaks)):
        labels, count = ndimage.label(ndimage.binary_opening(mask & (nearest == index), _CROSS), _CROSS)
        for label, inner in enumerate(ndimage.find_objects(labels, count), start=1):
            own = labels[inner] == label
            if own.sum() >= min_pixels:
                rows, columns = (
                    slice(outer.start + part.start, outer.start + part.stop)
                    for outer, part in zip(box, inner, strict=True)
                )
                parts.append(Region(own, (rows, columns), int(own.sum())))
    return parts if len(parts) > 1 else whole


def _hue_peaks(hues: Image) -> list[float]:
    """Hues that a region has beside each other: peaks of its hue histogram with a valley of half their height between.

    The mixed colours along an outline form slopes and low hills beside an object's own hue, which are no peaks by this
    rule. Objects of neighbouring hues are at least 31 degrees apart, four standard deviations of the smoothing.
    """
    counts = np.bincount((hues * (_HUE_BINS / 360)).astype(int) % _HUE_BINS, minlength=_HUE_BINS).astype(float)
    smooth = ndimage.gaussian_filter1d(counts, _HUE_SMOOTHING, mode="wrap")
    start = int(smooth.argmin())  # opened at a valley, so that a peak at 0 degrees is whole
    opened = np.roll(smooth, -start)
    peaks, found = signal.find_peaks(np.append(opened, opened[0]), prominence=0)
    clear = peaks[found["prominences"] >= 0.5 * opened[peaks % _HUE_BINS]]
    return [float((peak + start) % _HUE_BINS + 0.5) * 360 / _HUE_BINS for peak in clear]
