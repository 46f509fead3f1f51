"""The pictures among the arguments of a call: in which forms they come, and how each is read."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from seecoder.encoder.context import ImageSet, normalise_weights
from seecoder.images.gate import Source as Picture
from seecoder.images.gate import load_image
from seecoder.images.masks import load_control_image
from seecoder.sampling.sizes import resized
from seecoder.sampling.views import Size

# One picture, several, or several contexts of which each is made of one or more pictures.
Pictures = Picture | ImageSet | Sequence[Picture | ImageSet | Sequence[Picture]]
# One picture, one for every result, or a list of these with one entry for every network that sees them.
ControlPictures = Picture | Sequence[Picture] | Sequence[Picture | Sequence[Picture]]
ImageSize = int | Literal["trained"] | None

_ASPECT_TOLERANCE = 0.05  # a start picture may be stretched by this much without a word


def as_image_sets(
    image: Pictures, weights: Sequence[float] | None = None, masks: Picture | Sequence[Picture | None] | None = None
) -> list[ImageSet]:
    """Read the `image` argument: every entry of the result becomes one context.

    Args:
        image: One picture (path, bytes, PIL image, array, tensor); a list of pictures, each its own context; or, in
            place of a picture, an `ImageSet` or an inner list of pictures that together make one context. A tensor or
            array of four dimensions is a list of pictures.
        weights: Weights of the pictures of every inner list.
        masks: What counts of the pictures: one mask for all, or a list with one (or None) for each entry of `image`.

    Returns:
        One `ImageSet` a context; a single picture is a set of one.

    Raises:
        ValueError: An empty list, or weights that no inner list can use.
    """
    if isinstance(image, (torch.Tensor, np.ndarray)) and image.ndim == 4:
        image = list(image)
    entries = list(image) if isinstance(image, (list, tuple)) else [image]
    if not entries:
        raise ValueError("`image` is an empty list; give at least one picture.")
    given: Sequence[Any] = masks if isinstance(masks, (list, tuple)) else [masks] * len(entries)
    if len(given) != len(entries):
        raise ValueError(f"`image_mask` has {len(given)} masks for {len(entries)} entries of `image`; give one each.")
    sets = []
    for entry, mask in zip(entries, given, strict=True):
        if not isinstance(entry, ImageSet):
            entry = ImageSet(entry, weights) if isinstance(entry, (list, tuple)) else ImageSet([entry])
        if mask is not None:
            entry = replace(entry, masks=[mask] * len(entry.images))
        if entry.masks is not None and len(entry.masks) != len(entry.images):
            raise ValueError(f"`masks` has {len(entry.masks)} entries for {len(entry.images)} pictures; give one each.")
        if not entry.images:
            raise ValueError("an inner list of `image` is empty; give at least one picture.")
        if entry.weights is not None:
            normalise_weights(entry.weights, len(entry.images))
        sets.append(entry)
    if weights is not None and not any(isinstance(entry, (list, tuple)) for entry in entries):
        raise ValueError(
            "`context_weights` have no effect: they weigh the pictures of an inner list, as in image=[[first, second]]."
        )
    return sets


def one_each(name: str, value: float | Sequence[float], count: int) -> list[float]:
    """Give every network its number.

    Args:
        name: What the value is called where the user gives it.
        value: One number for all, or a list of them.
        count: Number of ControlNets or T2I-Adapters.

    Raises:
        ValueError: A list of another length.
    """
    if not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"`{name}`={list(value)} must be one number, or {count}: one for every network.")
    return list(value)


def control_pixels(image: Picture | Sequence[Picture], count: int) -> torch.Tensor:
    """Read the `control_image` argument.

    Args:
        image: One picture for all results, or a list of one each. What is transparent in it is black.
        count: Number of results.

    Returns:
        (1 or N, 3, H, W) in [0, 1].

    Raises:
        ImageError: A picture that cannot be read.
        ValueError: Another number of pictures, or pictures of several sizes.
    """
    given: Sequence[Any] = image if isinstance(image, (list, tuple)) else [image]
    pictures = [load_control_image(picture) for picture in given]
    if len(pictures) not in (1, count) or len({picture.shape for picture in pictures}) > 1:
        raise ValueError(
            f"`control_image` has {len(pictures)} pictures for {count} results; give one for all, or one each, of one "
            "size."
        )
    return torch.stack(pictures)


def start_pixels(image: Picture, size: Size, cell: int) -> torch.Tensor:
    """Read the `start_image` argument: at most at the size of the result, and in its aspect ratio.

    Args:
        image: The picture.
        size: (height, width) of the result in pixels.
        cell: Pixels of one latent cell; the sides become multiples of it.

    Returns:
        (1, 3, H, W) in [0, 1].

    Raises:
        ImageError: A picture that cannot be read.
        ValueError: Another aspect ratio.
    """
    pixels = load_image(image)[None]
    check_aspect("start_image", (pixels.shape[-2], pixels.shape[-1]), size)
    height, width = pixels.shape[-2:]
    scale = min(1.0, max(height / size[0], width / size[1]))
    target = [max(cell, round(side * scale / cell) * cell) for side in size]
    return resized(pixels, target, mode="bicubic", antialias=True).clamp(0.0, 1.0)


def check_aspect(name: str, found: Size, size: Size, notes: list[str] | None = None) -> None:
    """Refuse a picture that would be stretched, or note that it was.

    Args:
        name: The argument that gave it.
        found: Its (height, width) in pixels.
        size: (height, width) of the result in pixels.
        notes: Where a note is added in place of an error.

    Raises:
        ValueError: Its aspect ratio differs by more than a few percent.
    """
    (height, width), (rows, columns) = found, size
    if abs((width / height) / (columns / rows) - 1.0) > _ASPECT_TOLERANCE:
        about = f"`{name}` is {height}x{width}, another aspect ratio than the result's {rows}x{columns}"
        if notes is None:
            raise ValueError(f"{about}. Crop it, or ask for a `width` near {round(rows * width / height)}.")
        notes.append(f"{about}, to which it was stretched.")
