"""Whether the parts of a base go together, told from their configurations before anything runs.

A pipeline asks when it is made and when one of its parts is replaced, a training asks before its first step, and a plan
asks before any weights are there. All three get the same sentences.
"""

from collections.abc import Mapping
from typing import Any, Literal

from torch.nn import ModuleList

from seecoder.base_model.facts import (
    config_of,
    context_width,
    family,
    is_sdxl,
    pixels_per_cell,
    pooled_width,
    reads_mask,
)
from seecoder.base_model.latents import check_scaling
from seecoder.base_model.loading import CLASSES
from seecoder.base_model.single_file import say_once

# Settings with which a UNet reads more than latents, a timestep and one context, and what it reads then.
# `encoder_hid_dim_type` says nothing more: alone it is that of an IP-Adapter, which brings what it reads.
_UNSUPPORTED = {
    "class_embed_type": "class labels or noise levels, as those of unCLIP and of upscalers do",
    "num_class_embeds": "class labels, as upscalers do",
    "class_embeddings_concat": "class labels beside the timestep",
    "encoder_hid_dim": "a context that it projects first, as those of Kolors, Kandinsky and DeepFloyd do",
    "time_cond_proj_dim": "the guidance scale, as distilled models (LCM) do",
    "dual_cross_attention": "two contexts, as that of Versatile Diffusion does",
}
_COPIED = (  # what a ControlNet has in common with the UNet whose copy it is
    "cross_attention_dim",
    "addition_embed_type",
    "projection_class_embeddings_input_dim",
    "block_out_channels",
    "layers_per_block",
)
_READ = {
    "context_dim": "SD 1.x reads 768, SD 2.x 1024, SDXL 2048",
    "pooled_dim": "SDXL reads 1280, SD 1.x and 2.x none",
}
_SCALING_FACTORS = {"sd": 0.18215, "sdxl": 0.13025}  # published with the autoencoders of each family


def check_parts(
    unet: Any,
    vae: Any,
    *,
    encoder: Any = None,
    controlnet: Any = None,
    expected: Literal["sd", "sdxl"] | None = None,
    training: bool = False,
) -> None:
    """Refuse parts of a base that do not go together.

    Args:
        unet: The UNet, or the mapping that its configuration file holds.
        vae: The autoencoder, or its configuration.
        encoder: A SeeCoder, or its arguments; None for none.
        controlnet: A ControlNet, several in a list or in diffusers' `MultiControlNetModel`; None for none.
        expected: Family of the pipeline's UNets; None for any.
        training: Whether an encoder is to be trained on the base, which needs the autoencoder's posterior.

    Raises:
        ValueError: A part is of a kind that nothing here can use, or two of them do not fit each other.
    """
    _check_class("unet", unet, CLASSES["unet"])
    _check_class("vae", vae, ("AutoencoderKL",) if training else CLASSES["vae"])
    _check_conditions(unet, training)
    _check_latents(unet, vae, training)
    if expected not in (None, found := family(unet)):
        name, pipeline = {"sd": ("SD 1.x or 2.x", "SeeCoder"), "sdxl": ("SDXL", "SeeCoderXL")}[found]
        raise ValueError(f"`unet` is one of {name}; use {pipeline}Pipeline for it.")
    if encoder is not None:
        _check_encoder(config_of(encoder), unet)
    if controlnet is not None:
        nets = getattr(controlnet, "nets", controlnet)
        for net in nets if isinstance(nets, (list, tuple, ModuleList)) else (nets,):
            _check_controlnet(net, unet, vae)


def check_picture_size(vae: Any, height: int, width: int) -> None:
    """Refuse training pictures of which a row or a column would be lost, or that leave a backbone nothing to see.

    Args:
        vae: The autoencoder, or its configuration.
        height: Of the pictures, in pixels.
        width: Of the pictures, in pixels.

    Raises:
        ValueError: A side is below 32 pixels, or no multiple of a latent cell.
    """
    cell = pixels_per_cell(vae)
    for size in (height, width):
        if size % cell or size < 32:
            raise ValueError(f"`image_size`={size} must be at least 32, and a multiple of {cell} (a latent cell).")


def _check_class(name: str, part: Any, accepted: tuple[str, ...]) -> None:
    """Refuse networks of other classes: those for video, for instance, have configurations that look alike."""
    if isinstance(part, Mapping):
        found = [str(part.get("_class_name", accepted[0]))]
    else:  # of a compiled network, the network itself
        found = [cls.__name__ for cls in type(getattr(part, "_orig_mod", part)).__mro__]
        found = found if "ConfigMixin" in found else list(accepted)
    if not set(found) & set(accepted):
        raise ValueError(f"`{name}`={found[0]} must be {' or '.join(accepted)}. Use one made for SD 1.x, 2.x or SDXL.")


def _check_conditions(unet: Any, training: bool) -> None:
    """Refuse a UNet that reads what neither an encoder nor a call gives; calls do give the guidance scale."""
    config = config_of(unet)
    family(unet)
    for name, meaning in _UNSUPPORTED.items():
        value = config.get(name) if training or name != "time_cond_proj_dim" else None
        if value is not None and value is not False:  # an embedding of 0 classes wants labels, too
            raise ValueError(
                f"`{name}`={value!r} of the base's UNet must be null: it reads {meaning}. "
                "Use a text-to-image base of SD 1.x, 2.x or SDXL."
            )
    for name in ("conv_in_kernel", "conv_out_kernel"):
        if (kernel := config.get(name, 3)) % 2 == 0:
            raise ValueError(f"`{name}`={kernel} of the base's UNet must be odd: an even one loses a row. Use another.")
    width, pooled = context_width(unet), pooled_width(unet)
    if pooled is not None and (pooled < 1 or pooled + config["addition_time_embed_dim"] == width):
        raise ValueError(
            f"`projection_class_embeddings_input_dim`={config['projection_class_embeddings_input_dim']} of the base's "
            "UNet must hold a pooled vector and six time ids. With five it is SDXL's refiner, which only finishes "
            "pictures of the base model: use the base model."
        )


def _check_latents(unet: Any, vae: Any, training: bool) -> None:
    """Refuse an autoencoder of other latents, and UNets that take something beside them.

    A call of a pipeline may bring the mask that an inpainting model reads; a training has none.
    """
    config = config_of(unet)
    reads, gives = config.get("in_channels", 4), config.get("out_channels", 4)
    channels = config_of(vae).get("latent_channels", 4)
    if channels != gives:
        raise ValueError(
            f"`latent_channels`={channels} of the VAE must be {gives}, which the base's UNet gives. Use a VAE of this "
            "family: those of SD 1.x, 2.x and SDXL have 4, those of SD 3 and Flux 16."
        )
    if reads != gives and (training or not reads_mask(unet)):
        beside = {
            gives + 1: "a depth map (a depth-to-image model)",
            gives + 3: "a small picture (an upscaler)",
            2 * gives: "a picture to edit (an image-editing model)",
            2 * gives + 1: "a mask and a masked picture (an inpainting model)",
        }.get(reads, "something else")
        raise ValueError(
            f"`in_channels`={reads} of the base's UNet must be {gives}, as many as it gives: it reads {beside} beside "
            "the latents. Use its text-to-image sibling."
        )
    check_scaling(config_of(vae))
    for name in ("in_channels", "out_channels"):
        if (value := config_of(vae).get(name, 3)) != 3:
            raise ValueError(f"`{name}`={value} of the VAE must be 3, the channels of a picture. Use another VAE.")
    factor, own = config_of(vae).get("scaling_factor"), family(unet)
    other = next(name for name in _SCALING_FACTORS if name != own)
    if factor == _SCALING_FACTORS[other]:
        family_name = {"sd": "SD 1.x and 2.x", "sdxl": "SDXL"}[other]
        say_once(
            f"`scaling_factor`={factor} of the VAE is that of {family_name}; those of this base's family have "
            f"{_SCALING_FACTORS[own]}. If colours are wrong, use a VAE of this family."
        )


def _check_encoder(arguments: Mapping[str, Any], unet: Any) -> None:
    """Refuse an encoder whose context or pooled vector the UNet cannot read."""
    given = {"context_dim": 768, "pooled_dim": None, **arguments}
    for name, read in (("context_dim", context_width(unet)), ("pooled_dim", pooled_width(unet))):
        if given[name] != read:
            raise ValueError(
                f"`{name}`={given[name]} of the encoder must be {read}, which this base's UNet reads. {_READ[name]}: "
                "use an encoder for this family."
            )


def _check_controlnet(controlnet: Any, unet: Any, vae: Any) -> None:
    """Refuse a ControlNet that is no copy of a UNet like this one, or whose picture is of another kind."""
    _check_class("controlnet", controlnet, CLASSES["controlnet"])
    config, base = config_of(controlnet), config_of(unet)
    wanted = {name: base.get(name) for name in _COPIED if is_sdxl(unet) or not name.startswith("projection")}
    wanted |= {"in_channels": base.get("out_channels", 4), "class_embed_type": None, "num_class_embeds": None}
    for name, value in wanted.items():
        if _plain(config.get(name)) != _plain(value):
            raise ValueError(
                f"`{name}`={config.get(name)} of the ControlNet must be {value}, as the base's UNet has it. Use a "
                "ControlNet made for this base's family."
            )
    if (channels := config.get("conditioning_channels", 3)) != 3:
        raise ValueError(f"`conditioning_channels`={channels} of the ControlNet must be 3. Use one that reads RGB.")
    levels = config["conditioning_embedding_out_channels"]
    if 2 ** (len(levels) - 1) != pixels_per_cell(vae):
        raise ValueError(
            f"`conditioning_embedding_out_channels`={list(levels)} of the ControlNet must have as many levels as the "
            f"VAE: {pixels_per_cell(vae)} pixels are one latent cell. Use a ControlNet made for this base's family."
        )


def _plain(value: Any) -> Any:
    """A setting as files and objects have it alike: lists for tuples, one number for equal ones."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values[0] if len(set(values)) == 1 else values
