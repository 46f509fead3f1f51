"""Open what the command line names: encoders in any form, bases, devices."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seecoder.call_rules import one_or_all
from seecoder.cli.conditions.adapters import load_adapters, place
from seecoder.cli.console import say
from seecoder.lookup import is_local

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from seecoder.pipelines import SeeCoderPipeline, SeeCoderXLPipeline


THUMBNAIL_SIDE = 256
_NAMED = 5  # files that are passed over


@dataclass(frozen=True)
class OpenedPictures:
    """The pictures of a command by their paths, each decoded once; only what is needed of each is kept.

    Attributes:
        encoded: What the encoder sees, (3, h, w) in [0, 1]: reduced as `--image-size` says.
        thumbnails: What the contact sheet shows.
        whole: The start picture and what an IP-Adapter sees, (3, H, W) in [0, 1].
        controls: Control pictures, (3, H, W) in [0, 1], black where they are transparent.
        masks: How much each pixel counts, (H, W) in [0, 1].
    """

    encoded: "dict[str, torch.Tensor]" = field(default_factory=dict)
    thumbnails: "dict[str, Image.Image]" = field(default_factory=dict)
    whole: "dict[str, torch.Tensor]" = field(default_factory=dict)
    controls: "dict[str, torch.Tensor]" = field(default_factory=dict)
    masks: "dict[str, torch.Tensor]" = field(default_factory=dict)


def files_of(pictures: list[str]) -> list[str]:
    """Put the pictures of a folder in its place, sorted by name; what else is in it is named and counted.

    Args:
        pictures: Files and folders.

    Raises:
        ValueError: A folder without pictures.
    """
    from seecoder.images.gate import is_image_file
    from seecoder.images.saving import without_variations

    found = []
    for given in pictures:
        if not Path(given).is_dir():
            found.append(given)
            continue
        entries = sorted(Path(given).iterdir())
        files = [str(path) for path in without_variations([path for path in entries if is_image_file(path)])]
        others = [path.name for path in entries if str(path) not in files]
        named = ", ".join(others[:_NAMED]) + (", …" if len(others) > _NAMED else "")
        if not files:
            raise ValueError(f"`PICTURE`={given} is a folder without pictures" + (f" ({named})." if others else "."))
        say(f"{given}: {len(files)} pictures" + (f"; passed over {len(others)}: {named}" if others else ""))
        found += files
    return found


def pictures_by_use(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """The paths of all pictures that a command reads, by the attributes of `OpenedPictures` that they go to."""
    whole = (arguments.start_image, arguments.ip_adapter_image)
    masks = (arguments.mask, *arguments.reference_mask, *(mask for mask, _ in arguments.region))
    return {
        "encoded": [*arguments.pictures, *arguments.negative, *(picture for _, picture in arguments.region)],
        "whole": [path for path in whole if path is not None],
        "controls": [*arguments.control_image, *arguments.adapter_image],
        "masks": [path for path in masks if path is not None],
    }


def open_pictures(arguments: argparse.Namespace) -> OpenedPictures:
    """Open all pictures of a command before anything is loaded, so that a bad one costs no time.

    Raises:
        ImageError: A picture that cannot be read, or is too small to be encoded.
    """
    from seecoder.images.gate import MAX_PIXELS, load_image
    from seecoder.images.masks import load_control_image, load_mask
    from seecoder.images.saving import to_pil
    from seecoder.images.scaling import encodable

    limit = MAX_PIXELS if arguments.max_pixels is None else arguments.max_pixels
    paths = pictures_by_use(arguments)
    opened = OpenedPictures(
        controls={path: load_control_image(path, max_pixels=limit) for path in paths["controls"]},
        masks={path: load_mask(path, max_pixels=limit, may_be_black=path == arguments.mask) for path in paths["masks"]},
    )
    side = encoded_side(arguments)
    for path in sorted({*paths["encoded"], *paths["whole"]}):
        pixels = load_image(path, max_pixels=limit)
        if path in paths["whole"]:
            opened.whole[path] = pixels
        if path in paths["encoded"]:
            opened.encoded[path] = encodable(path, pixels, side)
            opened.thumbnails[path] = to_pil(pixels)
            opened.thumbnails[path].thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return opened


def encoded_side(arguments: argparse.Namespace) -> int | None:
    """Give the side of `--image-size`, None for "own"; what `--encoder` records is known before it is loaded."""
    if arguments.image_size != "trained":
        return arguments.image_size
    from seecoder.base_model.loading import load_config
    from seecoder.images.scaling import ENCODED_SIZE

    may_say = Path(arguments.encoder).is_dir() or not is_local(arguments.encoder)
    try:
        config = load_config(arguments.encoder, "encoder", at_top=True) if may_say else {}
    except FileNotFoundError:  # said in other words by what loads the encoder
        config = {}
    return config.get("image_size", ENCODED_SIZE)


def pick_device(name: str) -> "torch.device":
    """Choose the device.

    Args:
        name: A torch device, or "auto" for an accelerator if there is one.

    Raises:
        ValueError: One that is not there.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"`--device` {name}: torch sees no CUDA device here; use --device cpu.")
    return device


def pick_dtype(name: str, device: "torch.device") -> "torch.dtype":
    """Choose the dtype of the networks.

    Args:
        name: "float32", "bfloat16", "float16", or "auto".
        device: Where they will run.
    """
    import torch

    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    return getattr(torch, name)


def load_encoder(source: str, dtype: "torch.dtype | None" = None) -> Any:
    """Open an encoder.

    Args:
        source: A folder or Hub repository in our format, or a released `.safetensors` file.
        dtype: What to hold the encoder in; None for how it was saved.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: A file of cached contexts.
        WeightsError: What is there does not fit, or is a pickle.
    """
    from seecoder.encoder.context import is_context_file
    from seecoder.encoder.model import SeeCoder

    if is_context_file(source):
        raise ValueError(f"`--encoder`={source} must be an encoder, not ready contexts.")
    if Path(source).is_file():
        encoder: Any = SeeCoder.from_official(source)
        return encoder if dtype is None else encoder.to(dtype)
    return SeeCoder.from_pretrained(source, **({} if dtype is None else {"dtype": dtype}))


def load_pipeline(arguments: argparse.Namespace) -> "SeeCoderPipeline | SeeCoderXLPipeline":
    """Build the pipeline that the options of `add_base_options` describe.

    Args:
        arguments: The parsed options.

    Returns:
        The pipeline on its device; it has no encoder if `--encoder` names a file of contexts.

    Raises:
        FileNotFoundError: A folder or file is missing.
        ValueError: Parts that do not fit each other.
        WeightsError: Weights that do not fit.
    """
    from seecoder.base_model.facts import is_sdxl
    from seecoder.base_model.loading import load_config, load_part
    from seecoder.base_model.schedulers import scheduler_from_config
    from seecoder.encoder.context import is_context_file
    from seecoder.pipelines import SeeCoderPipeline, SeeCoderXLPipeline
    from seecoder.sampling.stepper import check_steps

    device = pick_device(arguments.device)
    if arguments.offload is not None and device.type == "cpu":
        raise ValueError(f"`--offload`={arguments.offload} has no effect on the CPU; leave it out.")
    dtype = pick_dtype(arguments.dtype, device)
    scheduler = load_part(arguments.base, "scheduler", prediction_type=arguments.prediction_type)
    if getattr(arguments, "scheduler", None):
        own = {**scheduler.config, "_class_name": type(scheduler).__name__}
        scheduler = scheduler_from_config(own, arguments.scheduler)
    if hasattr(arguments, "steps"):
        check_steps(scheduler, arguments.steps, arguments.eta)
    encoder = None if is_context_file(arguments.encoder) else load_encoder(arguments.encoder, dtype)
    cls = SeeCoderXLPipeline if is_sdxl(load_config(arguments.base, "unet")) else SeeCoderPipeline
    say(f"base {arguments.base}, encoder {arguments.encoder}, {str(dtype).removeprefix('torch.')} on {device}")
    pipe = cls.from_base(
        arguments.base,
        encoder=encoder,
        vae=arguments.vae,
        dtype=dtype,
        controlnet=one_or_all(arguments.controlnet),
        adapter=one_or_all(arguments.adapter),
        prediction_type=arguments.prediction_type,
        text=getattr(arguments, "text", None) is not None,
        variant=arguments.variant,
    )
    pipe.scheduler = scheduler
    load_adapters(pipe, arguments)
    place(pipe, arguments.offload, device)
    return pipe
