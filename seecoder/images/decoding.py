"""From the bytes of a file to numbers: open, decode, apply the colour profile, keep the range of deep greyscale."""

import functools
import logging
import re
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms
from PIL.JpegImagePlugin import JpegImageFile

from seecoder.images.formats.isobmff import open_isobmff
from seecoder.images.formats.png import open_png
from seecoder.images.formats.streams import open_bmp, open_gif, open_jpeg
from seecoder.images.formats.tiff import open_tiff
from seecoder.images.formats.webp import open_webp
from seecoder.images.header import MAX_PROFILE_BYTES, BadImage, warn_of_frames

_log = logging.getLogger(__name__)

# The class of each format is used directly: unlike `Image.open` it knows no pixel limit of its own, so that a larger
# `max_pixels` needs no change of the process-wide `Image.MAX_IMAGE_PIXELS` (which other threads may rely on), and none
# of Pillow's other formats (more than thirty, one of which starts Ghostscript) can be reached.
_OPENERS: list[tuple[re.Pattern[bytes], Callable[[bytes, int], Image.Image]]] = [
    (re.compile(rb"\xff\xd8\xff"), open_jpeg),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), open_png),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), open_webp),
    (re.compile(rb"II\x2a\0|MM\0\x2a"), open_tiff),
    (re.compile(rb"GIF8[79]a"), open_gif),
    (re.compile(rb"....ftyp", re.DOTALL), open_isobmff),
    (re.compile(rb"BM"), open_bmp),
]


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Open the first image of a file after the checks of its format.

    Every check is bounded by the length of the file.

    Raises:
        BadImage: If the format is not one of the eight, or the file is truncated, damaged, larger than `max_pixels` or
            made to cost more than it is worth. On damage Pillow raises exceptions of its own, too.
    """
    for signature, opener in _OPENERS:
        if signature.match(data):
            image = opener(data, max_pixels)
            if getattr(image, "is_animated", False):
                warn_of_frames()
            return image
    if not data:
        raise BadImage("the file is empty")
    what = f"a file that begins with {data[:8]!r}"
    if data.startswith(b"version https://git-lfs"):
        what = "a Git LFS pointer (run `git lfs pull`)"
    elif data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        what = "a web page or another text with tags (HTML, XML, SVG)"
    raise BadImage(f"this is {what}; JPEG, PNG, WEBP, TIFF, BMP, GIF, AVIF and HEIC are read")


def is_image(head: bytes) -> bool:
    """Whether a file that begins with these bytes, sixteen or more, is of a format that is read."""
    return any(signature.match(head) for signature, _ in _OPENERS)


def is_image_file(path: Path) -> bool:
    """Whether a path is a file that `is_image`."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return is_image(file.read(64))


def decode(image: Image.Image, data: bytes) -> np.ndarray:
    """Pixels of an opened file, as `rasterise` gives them; of plain JPEG by torchvision, which copies them less often.

    Builds may differ, and its decoders are to be removed: it is taken where it gives Pillow's bytes. And where it is
    imported already, as by what reads shards: for a few pictures that would take longer than it saves.
    """
    is_taken = getattr(image, "is_plain", False) and "torchvision.io" in sys.modules
    values = _by_torchvision(data, image.mode) if is_taken and _equals_pillow() else None
    if values is None:
        image.load()
        values = rasterise(image)
    return values


def _by_torchvision(data: bytes, mode: str) -> np.ndarray | None:
    """(H, W, 1 or 3) uint8 of a plain JPEG file; None where Pillow has to say what is wrong."""
    try:
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return torch.ops.image.decode_jpeg(content, len(mode), False).permute(1, 2, 0).numpy()
    except (AttributeError, RuntimeError):  # there is no such operator, or it refuses the file
        return None


@functools.cache
def _equals_pillow() -> bool:
    """Whether torchvision's decoder has Pillow's bytes for noise in each kind of JPEG."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 51, 3), dtype=np.uint8))
    for mode, subsampling in (("L", 0), ("RGB", 0), ("RGB", 1), ("RGB", 2)):
        file = BytesIO()
        noise.convert(mode).save(file, "JPEG", subsampling=subsampling)
        found = _by_torchvision(file.getvalue(), mode)
        if found is None or found.tobytes() != JpegImageFile(BytesIO(file.getvalue())).tobytes():
            return False
    return True


def rasterise(image: Image.Image) -> np.ndarray:
    """Pixels of a loaded Pillow image of any mode, which is not changed.

    Returns:
        (H, W, C), uint8 or float32 in [0, 1]; C is 1 or 3 for grey or sRGB, 2 or 4 with alpha behind.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_grey(image)
    icc = image.info.get("icc_profile")
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert(image.mode.upper())
    if image.mode not in ("1", "L", "P", "RGB", "LA", "PA", "RGBA") or not image.has_transparency_data:
        # Plane by plane, which Pillow does faster than NumPy could sort the channels later.
        return np.moveaxis(np.stack([np.asarray(band) for band in _to_srgb(image, icc).split()]), 0, 2)
    grey = image.mode in ("1", "L", "LA")
    image = image.convert("RGBA")
    colour = image.getchannel("R") if grey else image  # a grey picture stays grey: its profile is for grey
    return np.dstack([np.asarray(_to_srgb(colour, icc)), np.asarray(image.getchannel("A"))])


def _deep_grey(image: Image.Image) -> np.ndarray:
    """16 or 32 bits, or floats, as (H, W, 1 or 2) float32 in [0, 1].

    No file format states the range of 32-bit integers and floats. Floats within [0, 1] and integers within 16 bits are
    taken at their word, as most writers mean them; everything else is stretched from its minimum to its maximum, and
    the log says so.
    """
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})  # the tags of a TIFF, by number
    if image.mode == "I" and tags and tags.get(339, (1,))[0] == 1:  # unsigned; Pillow only knows signed ones
        values = values.view(np.uint32)
    if not np.isfinite(values).all():
        raise BadImage("it contains NaN or infinite values")
    low, high = float(values.min()), float(values.max())
    # 12 bits stay 12 bits in 16.
    top = 1.0 if image.mode == "F" else 4095.0 if tags.get(258) == (12,) else 65535.0
    if low == high or (low >= 0 and high <= top):
        grey = np.clip(values / np.float32(top), 0, 1)
    else:
        kind = "floating-point" if image.mode == "F" else "32-bit"
        _log.warning("%s greyscale from %g to %g: stretched to the range from black to white", kind, low, high)
        grey = (values - np.float64(low)) / (high - low)
    if image.mode.startswith("I;16") and tags and tags.get(262, 0) == 0:  # white is zero, which Pillow leaves as it is
        grey = 1 - grey
    transparent = image.info.get("transparency")
    planes = [grey, values != transparent] if isinstance(transparent, int) else [grey]
    return np.dstack(planes).astype(np.float32)


def _to_srgb(image: Image.Image, icc: Any) -> Image.Image:
    """Any 8-bit mode to grey or RGB in sRGB; a profile that cannot be used is passed over, as browsers do."""
    if image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    try:
        profile: Any = ImageCms.createProfile("LAB") if image.mode == "LAB" else None
        if isinstance(icc, bytes) and 0 < len(icc) <= MAX_PROFILE_BYTES:
            profile = ImageCms.ImageCmsProfile(BytesIO(icc))
            # Converting sRGB to sRGB would only add rounding errors to the most common case of all.
            if image.mode in ("L", "RGB") and (profile.profile.profile_description or "").startswith("sRGB"):
                profile = None
        if profile is not None:
            # The perceptual intent is the one that profiles carry tables for, and what browsers use by default.
            srgb, intent = ImageCms.createProfile("sRGB"), ImageCms.Intent.PERCEPTUAL
            return ImageCms.profileToProfile(image, profile, srgb, intent, outputMode="RGB") or image
    except (OSError, ImageCms.PyCMSError) as error:
        _log.warning("the embedded colour profile cannot be used (%s); converted without it", error)
    return image if image.mode in ("L", "RGB") else image.convert("RGB")
