"""What a call of a pipeline is given: its arguments, checked once, and the pictures among them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional

from seecoder.checks import Rule, choice, either, number, optional, require, some_of, whole
from seecoder.encoder.context import ImageSet, normalise_weights
from seecoder.encoder.input_checks import MIN_SIDE
from seecoder.images.gate import Source as Picture
from seecoder.images.gate import load_image
from seecoder.images.masks import load_control_image
from seecoder.pipelines.context.context_strength import SHORT_NAMES, ContextScale, flat_scales
from seecoder.pipelines.context.text import Text
from seecoder.sampling.image_to_image import STRENGTH, steps_left
from seecoder.sampling.randomness import Generators
from seecoder.sampling.recipe import Method
from seecoder.sampling.views import Size

# One picture, several, or several contexts of which each is made of one or more pictures.
Pictures = Picture | ImageSet | Sequence[Picture | ImageSet | Sequence[Picture]]
# One picture, one for every result, or a list of these with one entry for every network that sees them.
ControlPictures = Picture | Sequence[Picture] | Sequence[Picture | Sequence[Picture]]
ImageSize = int | Literal["trained"] | None

_ASPECT_TOLERANCE = 0.05  # a start picture may be stretched by this much without a word
CALLBACK_TENSORS = ("latents", "context", "negative_context")
_SHARE = number(0.0, 1.0)
_SCALES = either(
    number(),
    choice(*SHORT_NAMES),
    Rule(
        lambda value: isinstance(value, Mapping) and all(number().accepts(one) for _, one in flat_scales(value)),
        'numbers by block such as {"down": {"block_2": 1.0}, "mid": 0.5}',
    ),
)


def _one_or_several(rule: Rule) -> Rule:
    return either(rule, some_of(rule, "a list with one for every network", minimum=1))


_RULES = {
    "num_inference_steps": whole(1),
    "num_images_per_prompt": whole(1),
    "view_batch_size": whole(1),
    "guidance_scale": optional(number()),
    "image_size": optional(either(choice("trained"), whole(MIN_SIDE))),
    "context_scale": _SCALES,
    "controlnet_conditioning_scale": _one_or_several(number()),
    "guidance_rescale": _SHARE,
    "text_weight": optional(_SHARE),
    "eta": _SHARE,
    "strength": optional(STRENGTH),
    "mask_feather": whole(0),
    "timesteps": optional(some_of(number(0.0), "a list of timesteps from 0 up, the noisiest first", minimum=1)),
    "sigmas": optional(some_of(number(0.0), "a list of noise levels from 0 up, the noisiest first", minimum=2)),
    "adapter_conditioning_scale": _one_or_several(number()),
    "control_guidance_start": _one_or_several(_SHARE),
    "control_guidance_end": _one_or_several(_SHARE),
    "autoencoder_memory": either(
        number(0.0, above_minimum=True), Rule(lambda value: value == math.inf, "infinity (in GiB)")
    ),
    "output_type": choice("pil", "np", "pt", "latent"),
    "callback_on_step_end_tensor_inputs": some_of(
        choice(*CALLBACK_TENSORS), f"a list of names out of {', '.join(CALLBACK_TENSORS)}"
    ),
}


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Check the numbers and names among the arguments of a call.

    Args:
        arguments: Any arguments of `SeeCoderPipeline.__call__` by name.

    Raises:
        ValueError: One of them has a value that is not accepted.
    """
    for name, value in arguments.items():
        if name in _RULES:
            require(name, value, _RULES[name])
    _check_redrawing(arguments)


def _check_redrawing(given: Mapping[str, Any]) -> None:
    """Refuse a strength or a mask without the picture that they are about, and a strength that leaves no step."""
    strength, mask = given.get("strength"), given.get("mask_image")
    if given.get("start_image") is None:
        for name, value in (("strength", strength), ("mask_image", mask)):
            if value is not None:
                raise ValueError(f"`{name}` has no effect without `start_image`, the picture to redraw; give it.")
    if mask is None and given.get("mask_feather"):
        raise ValueError(f"`mask_feather`={given['mask_feather']} has no effect without `mask_image`; leave it out.")
    if strength is not None:
        steps_left(whole_steps(given), strength)


def whole_steps(given: Mapping[str, Any]) -> int:
    """Steps of one trajectory, by the arguments of a call."""
    if given.get("timesteps") is not None:
        return len(given["timesteps"])
    return given["num_inference_steps"] if given.get("sigmas") is None else len(given["sigmas"]) - 1


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


def check_size(height: int, width: int, multiple: int) -> None:
    """Check the size of the pictures to be made.

    Args:
        height: In pixels.
        width: In pixels.
        multiple: Pixels of one latent cell.

    Raises:
        ValueError: It is not a positive multiple; the nearest sizes that are, are named.
    """
    for name, value in (("height", height), ("width", width)):
        if value < multiple or value % multiple:
            lower = max(multiple, value // multiple * multiple)
            raise ValueError(
                f"`{name}`={value} must be a positive multiple of {multiple} (one latent cell is {multiple} pixels). "
                f"Use {lower} or {lower + multiple}."
            )
