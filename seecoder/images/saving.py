"""Pictures out: tensors become 8-bit images, and files that are complete or not there at all."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from seecoder.images.gate import ROUNDING, load_image
from seecoder.weights.atomic import atomic_path

_OPTIONS = {"PNG": {}, "JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}}
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
MAX_SIDE = {"PNG": 2**31 - 1, "JPEG": 65_500, "WEBP": 16_383}
VARIATION = re.compile(r"\d+-(.+)-seed\d+")  # how `seecoder vary` names its results; previews go on after it
_LONGEST_PIECE = 40  # characters of a name of a file that come from elsewhere


def to_pil(pixels: torch.Tensor) -> Image.Image:
    """An 8-bit RGB image from a tensor.

    Args:
        pixels: (3, H, W) in [0, 1], any float type, any device.

    Returns:
        A Pillow image of mode RGB; each level is the nearest of 256.

    Raises:
        ValueError: If the shape is another one, or values are not finite or outside [0, 1] by more than rounding.
    """
    if pixels.ndim != 3 or pixels.shape[0] != 3 or not pixels.is_floating_point() or not pixels.numel():
        raise ValueError(f"`pixels`={pixels.dtype} {tuple(pixels.shape)} must be a float tensor (3, H, W).")
    levels = pixels.detach().to("cpu", torch.float32)
    low, high = float(levels.min()), float(levels.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # written so that NaN fails too
        raise ValueError(f"`pixels` from {low:g} to {high:g} must be in [0, 1]. Clamp it first if that is meant.")
    return Image.fromarray(levels.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def save_image(image: torch.Tensor | Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a picture; it appears under its name complete or not at all.

    Args:
        image: (3, H, W) in [0, 1], or a Pillow image. What the format cannot hold is converted as `load_image` does:
            for JPEG, transparency is composited on white.
        path: Ends with .png, .jpg, .jpeg or .webp. JPEG and WEBP are written at quality 95.

    Raises:
        ValueError: If the suffix is another one, the picture is too large for the format, or as for `to_pil`.
        FileNotFoundError: If the folder does not exist.
    """
    format = FORMATS.get(Path(path).suffix.lower())
    if format is None:
        raise ValueError(f"`path`={os.fspath(path)} must end with one of {', '.join(FORMATS)}.")
    image = to_pil(image) if isinstance(image, torch.Tensor) else image
    if format != "PNG" and image.mode not in {"JPEG": ("RGB", "L"), "WEBP": ("RGB", "RGBA")}[format]:
        image = to_pil(load_image(image, max_pixels=max(1, image.width * image.height)))
    if max(image.size) > MAX_SIDE[format]:
        raise ValueError(
            f"`image` of {image.width:,} x {image.height:,} pixels must have at most {MAX_SIDE[format]:,} a side "
            f"in {format}. Save it as PNG."
        )
    with atomic_path(path) as partial, open(partial, "wb") as file:
        image.save(file, format=format, **_OPTIONS[format])


def without_variations(paths: Sequence[Path]) -> list[Path]:
    """Leave out what `seecoder vary` wrote beside its inputs; of results alone, the contact sheet and previews."""
    pages = [path for path in paths if path.stem == "sheet" and path.with_name("settings.json").is_file()]
    inputs = [path for path in paths if not VARIATION.match(path.stem) and path not in pages]
    return inputs or [path for path in paths if VARIATION.fullmatch(path.stem)]


def safe_name(text: str) -> str:
    """Make a piece of a file name out of anything.

    Args:
        text: Such as the name of an input picture.

    Returns:
        1 to 40 characters out of A-Z, a-z, 0-9, hyphen and underscore.
    """
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")[:_LONGEST_PIECE].strip("-")
    return slug or "picture"
