"""What a call of a pipeline is given: its arguments, checked once, and the pictures among them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional

from seecoder.call_rules import check_arguments
from seecoder.checks import Rule, choice, either, number, require
from seecoder.encoder.context import ImageSet, normalise_weights
from seecoder.images.gate import Source as Picture
from seecoder.images.gate import load_image
from seecoder.images.masks import load_control_image
from seecoder.pipelines.context.context_strength import SHORT_NAMES, ContextScale, flat_scales
from seecoder.pipelines.context.text import Text
from seecoder.sampling.randomness import Generators
from seecoder.sampling.recipe import Method
from seecoder.sampling.views import Size

# One picture, several, or several contexts of which each is made of one or more pictures.
Pictures = Picture | ImageSet | Sequence[Picture | ImageSet | Sequence[Picture]]
# One picture, one for every result, or a list of these with one entry for every network that sees them.
ControlPictures = Picture | Sequence[Picture] | Sequence[Picture | Sequence[Picture]]
ImageSize = int | Literal["trained"] | None

_ASPECT_TOLERANCE = 0.05  # a start picture may be stretched by this much without a word
_SCALES = either(
    number(),
    choice(*SHORT_NAMES),
    Rule(
        lambda value: isinstance(value, Mapping) and all(number().accepts(one) for _, one in flat_scales(value)),
        'numbers by block such as {"down": {"block_2": 1.0}, "mid": 0.5}',
    ),
)


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of one call, as `SeeCoderPipeline.__call__` and `SeeCoderXLPipeline.__call__` document them.

    Raises:
        ValueError: An argument has a value that is not accepted, or two of them contradict each other.
    """

    image: Pictures | None
    height: int | None
    width: int | None
    method: Method | Sequence[Method | str] | str | None
    num_inference_steps: int
    timesteps: Sequence[float] | None
    sigmas: Sequence[float] | None
    guidance_scale: float | None
    guidance_rescale: float
    eta: float
    num_images_per_prompt: int
    generator: Generators
    latents: torch.Tensor | None
    context: torch.Tensor | None
    negative_context: torch.Tensor | None
    context_weights: Sequence[float] | None
    image_size: ImageSize
    context_scale: ContextScale
    start_image: Picture | None
    strength: float | None
    mask_image: Picture | None
    mask_feather: int
    control_image: ControlPictures | None
    controlnet_conditioning_scale: float | Sequence[float]
    control_guidance_start: float | Sequence[float]
    control_guidance_end: float | Sequence[float]
    adapter_image: ControlPictures | None
    adapter_conditioning_scale: float | Sequence[float]
    ip_adapter_image: ControlPictures | None
    ip_adapter_image_embeds: Sequence[torch.Tensor] | None
    cross_attention_kwargs: Mapping[str, Any] | None
    view_batch_size: int
    autoencoder_memory: float
    output_type: str
    callback_on_step_end: Callable[..., Mapping[str, Any] | None] | None
    callback_on_step_end_tensor_inputs: Sequence[str]
    callback_on_stage_end: Callable[..., None] | None
    image_mask: Picture | Sequence[Picture | None] | None = None
    text: Text | None = None
    negative_text: Text | None = None
    text_weight: float | None = None
    # SDXL's own.
    pooled_context: torch.Tensor | None = None
    negative_pooled_context: torch.Tensor | None = None
    original_size: Size | None = None
    crops_coords_top_left: Size = (0, 0)
    target_size: Size | None = None

    def __post_init__(self) -> None:
        check_arguments(vars(self))
        require("context_scale", self.context_scale, _SCALES)
        starts, ends = self.control_guidance_start, self.control_guidance_end
        count = max(len(value) if isinstance(value, Sequence) else 1 for value in (starts, ends))
        starts = one_each("control_guidance_start", starts, count)
        ends = one_each("control_guidance_end", ends, count)
        for start, end in zip(starts, ends, strict=True):
            if start > end:
                raise ValueError(f"`control_guidance_start`={start} must not lie after `control_guidance_end`={end}.")
        if self.context is not None and self.context_weights is not None:
            raise ValueError("`context_weights` have no effect on a ready `context`; leave them out.")
        if self.text_weight is not None and isinstance(self.context_scale, str | Mapping):
            raise ValueError("`context_scale` by blocks needs `text` side by side; leave `text_weight` out.")
        if self.context is not None and self.image_mask is not None:
            raise ValueError("`image_mask` has no effect on a ready `context`; leave it out.")
        for name in ("negative_text", "text_weight"):
            if self.text is None and getattr(self, name) is not None:
                raise ValueError(f"`{name}` has no effect without `text`; leave it out.")
        if len(self.schedule) > 1:
            raise ValueError("`timesteps` and `sigmas` contradict each other; give one of them.")

    @property
    def schedule(self) -> dict[str, list[float]]:
        """`timesteps` or `sigmas` by name; empty where the scheduler spaces its steps itself."""
        given = {"timesteps": self.timesteps, "sigmas": self.sigmas}
        return {name: list(values) for name, values in given.items() if values is not None}


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
    if list(pixels.shape[-2:]) == target:
        return pixels
    return functional.interpolate(pixels, size=target, mode="bicubic", antialias=True).clamp(0.0, 1.0)


def check_aspect(name: str, found: Size, size: Size) -> None:
    """Refuse a picture that would be stretched.

    Args:
        name: The argument that gave it.
        found: Its (height, width) in pixels.
        size: (height, width) of the result in pixels.

    Raises:
        ValueError: Its aspect ratio differs by more than a few percent.
    """
    (height, width), (rows, columns) = found, size
    if abs((width / height) / (columns / rows) - 1.0) > _ASPECT_TOLERANCE:
        raise ValueError(
            f"`{name}` is {height}x{width}, another aspect ratio than the result's {rows}x{columns}. Crop it, or ask "
            f"for a `width` near {round(rows * width / height)}."
        )
