"""Which numbers and names a call of a pipeline accepts. Needs no torch, so that commands refuse others at once."""

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

from seecoder.checks import Rule, choice, either, number, optional, require, some_of, whole

XL_TENSORS = {"add_text_embeds": "text_embeds", "add_time_ids": "time_ids"}  # in stock pipelines, and in the UNet
CALLBACK_TENSORS = ("latents", "context", "negative_context", "prompt_embeds", *XL_TENSORS, "image")
STRENGTH = number(0.0, 1.0, above_minimum=True)
_SHARE = number(0.0, 1.0)
_SIZE = some_of(number(), "(height, width) in pixels", minimum=2, maximum=2)


def _one_or_several(rule: Rule) -> Rule:
    return either(rule, some_of(rule, "a list with one for every network", minimum=1))


def one_or_all(values: list[Any]) -> Any:
    """The value of what was given once, all values of what was given repeatedly, or None."""
    return values if len(values) > 1 else next(iter(values), None)


def flat_scales(scale: Mapping[str, Any] | list[Any] | tuple[Any, ...], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Give the numbers of nested scales by address: ("down.block_2.1", 1.0)."""
    for name, value in scale.items() if isinstance(scale, Mapping) else enumerate(scale):
        if isinstance(value, Mapping | list | tuple):
            yield from flat_scales(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


_RULES = {
    "num_inference_steps": whole(1),
    "num_images_per_prompt": whole(1),
    "view_batch_size": whole(1),
    "image_size": optional(either(choice("trained"), whole(32))),
    "guidance_scale": optional(number()),
    "text_weight": optional(_SHARE),
    "controlnet_conditioning_scale": _one_or_several(number()),
    "context_scale": either(
        number(),
        choice("style", "layout"),
        Rule(
            lambda value: isinstance(value, Mapping) and all(number().accepts(one) for _, one in flat_scales(value)),
            'numbers by block such as {"down": {"block_2": 1.0}, "mid": 0.5}',
        ),
    ),
    "guidance_rescale": _SHARE,
    "eta": _SHARE,
    "strength": optional(STRENGTH),
    "mask_feather": whole(0),
    **dict.fromkeys(("original_size", "crops_coords_top_left", "target_size"), optional(_SIZE)),
    "timesteps": optional(
        some_of(number(0.0), "a list of timesteps from 0 up, the noisiest first", minimum=1, falling=True)
    ),
    "sigmas": optional(
        some_of(number(0.0), "a list of noise levels from 0 up, the noisiest first", minimum=2, falling=True)
    ),
    "adapter_conditioning_scale": _one_or_several(number()),
    "control_guidance_start": _one_or_several(_SHARE),
    "control_guidance_end": _one_or_several(_SHARE),
    "autoencoder_memory": either(
        number(0.0, above_minimum=True), Rule(lambda value: value == math.inf, "infinity (in GiB)")
    ),
    "output_type": choice("pil", "np", "pt", "latent"),
    "callback_on_step_end_tensor_inputs": some_of(
        choice(*CALLBACK_TENSORS),
        f"a list of names out of {', '.join(CALLBACK_TENSORS)}",
    ),
}


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Check the numbers and names among the arguments of a call.

    Args:
        arguments: Any arguments of `SeeCoderPipeline.__call__` by name.

    Raises:
        ValueError: One of them has a value that is not accepted, or no effect without another.
    """
    for name, value in arguments.items():
        if name in _RULES:
            require(name, value, _RULES[name])
    own = list(getattr(arguments.get("callback_on_step_end"), "tensor_inputs", ()))  # as diffusers' callbacks have
    require("callback_on_step_end", own, _RULES["callback_on_step_end_tensor_inputs"])
    _check_redrawing(arguments)
    for name in ("negative_text", "text_weight"):
        if arguments.get("text") is None and arguments.get(name) is not None:
            raise ValueError(f"`{name}` has no effect without `text`; leave it out.")
    if arguments.get("text_weight") is not None and isinstance(arguments.get("context_scale"), str | Mapping):
        raise ValueError("`context_scale` by blocks needs `text` side by side; leave `text_weight` out.")


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


def steps_left(count: int, strength: float) -> int:
    """How many of `count` steps a strength leaves, rounded down as in diffusers.

    Raises:
        ValueError: If it is none.
    """
    left = min(int(count * strength), count)
    if left < 1:
        raise ValueError(
            f"`strength`={strength} of {count} steps must leave at least one step. Use at least {1 / count:.3g}, or "
            "more `num_inference_steps`."
        )
    return left


def check_size(height: int, width: int, multiple: int) -> None:
    """Check the size of the pictures to be made.

    Args:
        height: In pixels.
        width: In pixels.
        multiple: Pixels of one latent cell.

    Raises:
        ValueError: It is not a positive multiple; the nearest sizes that are, are named. Or memory is too small for it.
    """
    for name, value in (("height", height), ("width", width)):
        require(name, value, whole())
        if value < multiple or value % multiple:
            lower = max(multiple, value // multiple * multiple)
            raise ValueError(
                f"`{name}`={value} must be a positive multiple of {multiple} (one latent cell is {multiple} pixels). "
                f"Use {lower} or {lower + multiple}."
            )
    is_known = "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ())
    held = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if is_known else math.inf
    if (needed := 15 * height * width) > held:  # three float32 numbers a pixel, and the bytes that are written
        gib = f"{needed / 2**30:,.0f} GiB, and this machine has {held / 2**30:,.0f}"
        raise ValueError(f"`height`={height} and `width`={width} make a picture of {gib}. Ask for a smaller one.")
