"""What `image` may be, and everything that can be said about a call before any network runs."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from seecoder.encoder.context import ImageSet, normalise_weights

__all__ = ["OUTPUT_TYPES", "as_image_sets", "check_numbers", "check_size", "check_tensors"]

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def as_image_sets(image: Any, weights: Sequence[float] | None = None) -> list[ImageSet]:
    """Read the `image` argument: every entry of the result becomes one context.

    Args:
        image: one picture (path, bytes, PIL image, array, tensor); a list of pictures, each its own context; or, in
            place of a picture, an `ImageSet` or an inner list of pictures that together make one context. A tensor or
            array of four dimensions is a list of pictures.
        weights: weights of the pictures of every inner list.

    Returns:
        One `ImageSet` a context; a single picture is a set of one.

    Raises:
        ValueError: an empty list, or weights that no inner list can use.
    """
    if isinstance(image, (torch.Tensor, np.ndarray)) and image.ndim == 4:
        image = list(image)
    entries = list(image) if isinstance(image, (list, tuple)) else [image]
    if not entries:
        raise ValueError("`image` is an empty list; give at least one picture.")
    sets = [_as_image_set(entry, weights) for entry in entries]
    if weights is not None and not any(isinstance(entry, (list, tuple)) for entry in entries):
        raise ValueError(
            "`context_weights` have no effect: they weigh the pictures of an inner list, as in image=[[first, second]]."
        )
    return sets


def _as_image_set(entry: Any, weights: Sequence[float] | None) -> ImageSet:
    found = entry
    if not isinstance(entry, ImageSet):
        several = isinstance(entry, (list, tuple))
        found = ImageSet(entry if several else [entry], weights if several else None)
    if not found.images:
        raise ValueError("an inner list of `image` is empty; give at least one picture.")
    if found.weights is not None:
        normalise_weights(found.weights, len(found.images))
    return found


def check_size(height: int, width: int, multiple: int) -> None:
    """Check the size of the pictures to be made.

    Args:
        height: in pixels.
        width: in pixels.
        multiple: pixels of one latent cell.

    Raises:
        ValueError: not a positive multiple, with the nearest sizes that are.
    """
    for name, value in (("height", height), ("width", width)):
        if value < multiple or value % multiple:
            below = max(multiple, value // multiple * multiple)
            raise ValueError(
                f"`{name}`={value} is not a positive multiple of {multiple} (one latent cell is {multiple} pixels). "
                f"Use {below} or {below + multiple}."
            )


def check_numbers(**numbers: Any) -> None:
    """Check the numbers and names of a call.

    Args:
        numbers: any of `num_inference_steps`, `num_images_per_prompt` (whole, >= 1), `guidance_scale`, `context_scale`,
            `controlnet_conditioning_scale` (finite), `guidance_rescale`, `eta` (in [0, 1]), `autoencoder_memory`
            (positive), `output_type`.

    Raises:
        ValueError: the first that is out of range, with the range.
    """
    for name in ("num_inference_steps", "num_images_per_prompt"):
        value = numbers.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}`={value!r} must be a whole number, at least 1.")
    for name in ("guidance_scale", "context_scale", "controlnet_conditioning_scale"):
        if not math.isfinite(numbers.get(name, 1.0)):
            raise ValueError(f"`{name}`={numbers[name]} must be a finite number.")
    for name in ("guidance_rescale", "eta"):
        if not 0.0 <= numbers.get(name, 0.0) <= 1.0:
            raise ValueError(f"`{name}`={numbers[name]} must lie between 0 and 1.")
    memory = numbers.get("autoencoder_memory", 1.0)
    if not isinstance(memory, (int, float)) or not memory > 0.0:
        raise ValueError(f"`autoencoder_memory`={memory!r} must be a positive number of GiB.")
    if numbers.get("output_type", "pil") not in OUTPUT_TYPES:
        raise ValueError(f"`output_type`={numbers['output_type']!r} is unknown; use one of {', '.join(OUTPUT_TYPES)}.")


def check_tensors(
    count: int,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    latents: torch.Tensor | None,
    shape: tuple[int, ...],
) -> None:
    """Check that generators and latents match the number and size of pictures.

    Args:
        count: pictures to be made.
        generator: one for all, or one a picture.
        latents: the starting noise, or None where its shape is the method's to check.
        shape: the shape it must have.

    Raises:
        ValueError: another count or shape.
    """
    if isinstance(generator, Sequence) and len(generator) != count:
        raise ValueError(
            f"`generator` has {len(generator)} entries for {count} pictures. Give one generator, or one per picture."
        )
    if latents is not None and tuple(latents.shape) != shape:
        raise ValueError(
            f"`latents` has shape {tuple(latents.shape)}; expected {shape} for this size and number of pictures."
        )
