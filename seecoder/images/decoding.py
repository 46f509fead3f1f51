"""From the bytes of a file to numbers: open, decode, apply the colour profile, keep the range of deep greyscale."""

import logging
import re
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from seecoder.images.formats.bmp import open_bmp
from seecoder.images.formats.gif import open_gif
from seecoder.images.formats.isobmff import open_isobmff
from seecoder.images.formats.jpeg import open_jpeg
from seecoder.images.formats.png import open_png
from seecoder.images.formats.tiff import open_tiff
from seecoder.images.formats.webp import open_webp
from seecoder.images.header import MAX_PROFILE_BYTES, BadImage, OpenedImage

_log = logging.getLogger(__name__)

# The class of each format is used directly: unlike `Image.open` it knows no pixel limit of its own, so that a larger
# `max_pixels` needs no change of the process-wide `Image.MAX_IMAGE_PIXELS` (which other threads may rely on), and none
# of Pillow's other formats (more than thirty, one of which starts Ghostscript) can be reached.
_OPENERS: list[tuple[re.Pattern[bytes], Callable[[bytes, int], OpenedImage]]] = [
    (re.compile(rb"\xff\xd8\xff"), open_jpeg),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), open_png),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), open_webp),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), open_tiff),
    (re.compile(rb"GIF8[79]a"), open_gif),
    (re.compile(rb"....ftyp", re.DOTALL), open_isobmff),
    (re.compile(rb"BM"), open_bmp),
]


def open_image(data: bytes, max_pixels: int) -> OpenedImage:
    """Open the first image of a file after the checks of its format.

    Every check is bounded by the length of the file.

    Raises:
        BadImage: If the format is not one of the eight, or the file is truncated, damaged, larger than `max_pixels` or
            made to cost more than it is worth. On damage Pillow raises exceptions of its own, too.
    """
    for signature, opener in _OPENERS:
        if signature.match(data):
            return opener(data, max_pixels)
    if not data:
        raise BadImage("the file is empty")
    what = f"a file that begins with {data[:8]!r}"
    if data.startswith(b"version https://git-lfs"):
        what = "a Git LFS pointer (run `git lfs pull`)"
    elif data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        what = "a web page or another text with tags (HTML, XML, SVG)"
    raise BadImage(f"this is {what}; JPEG, PNG, WEBP, TIFF, BMP, GIF, AVIF and HEIC are read")


def decode(opened: OpenedImage) -> Image.Image:
    """Decode an opened file, not yet upright; what the first frame of a GIF leaves empty is transparent."""
    opened.image.load()
    if opened.canvas is None:
        return opened.image
    width, height, left, top = opened.canvas
    canvas = Image.new("RGBA", (width, height))
    canvas.paste(opened.image.convert("RGBA"), (left, top))
    return canvas


def rasterise(image: Image.Image) -> np.ndarray:
    """Pixels of a loaded Pillow image of any mode, which is not changed.

    Returns:
        (H, W, C), uint8 or float32 in [0, 1]; C is 1 or 3 for grey or sRGB, 2 or 4 with alpha behind.
    """
    if image.mode.startswith("I;16"):
        return _sixteen_bit(image)
    if image.mode in ("I", "F"):
        return _wide_grey(image)
    icc = image.info.get("icc_profile")
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert(image.mode.upper())
    alpha = None
    if image.mode in ("1", "L", "P", "RGB", "LA", "PA", "RGBA") and image.has_transparency_data:
        grey = image.mode in ("1", "L", "LA")
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"))
        image = image.getchannel("R") if grey else image  # a grey picture stays grey: its profile is for grey
    return _stack(np.asarray(_to_srgb(image, icc)), alpha)


def _stack(colour: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    return np.atleast_3d(colour) if alpha is None else np.dstack([colour, alpha])


def _sixteen_bit(image: Image.Image) -> np.ndarray:
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})  # the tags of a TIFF, by number
    white = 4095 if tags.get(258) == (12,) else 65535  # 12 bits stay 12 bits in 16
    grey = np.clip(values.astype(np.float32) / np.float32(white), 0, 1)
    if tags and tags.get(262, 0) == 0:  # white is zero, which Pillow leaves as it is
        grey = 1 - grey
    transparent = image.info.get("transparency")
    return _stack(grey, (values != transparent).astype(np.float32) if isinstance(transparent, int) else None)


def _wide_grey(image: Image.Image) -> np.ndarray:
    """32-bit integers or floats, whose range no file format states, as (H, W, 1) float32 in [0, 1].

    Floats within [0, 1] and integers within 16 bits are taken at their word, as most writers mean them; everything
    else is stretched from its minimum to its maximum, and the log says so.
    """
    values, tags = np.asarray(image)[..., None], getattr(image, "tag_v2", None)
    if image.mode == "I" and tags and tags.get(339, (1,))[0] == 1:  # unsigned; Pillow only knows signed ones
        values = values.view(np.uint32)
    if not np.isfinite(values).all():
        raise BadImage("it contains NaN or infinite values")
    low, high = float(values.min()), float(values.max())
    top = 1.0 if image.mode == "F" else 65535.0
    if low >= 0 and high <= top:
        return (values / top).astype(np.float32)
    if low == high:
        return np.full(values.shape, np.clip(low / top, 0, 1), np.float32)
    _log.warning("32-bit greyscale from %g to %g: stretched to the range from black to white", low, high)
    return ((values - np.float64(low)) / (high - low)).astype(np.float32)


def _to_srgb(image: Image.Image, icc: Any) -> Image.Image:
    """Any 8-bit mode to grey or RGB in sRGB; a profile that cannot be used is passed over, as browsers do."""
    if image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    try:
        source = _usable_profile(image.mode, icc)
        if source is not None:
            # The perceptual intent is the one that profiles carry tables for, and what browsers use by default.
            srgb, intent = ImageCms.createProfile("sRGB"), ImageCms.Intent.PERCEPTUAL
            return ImageCms.profileToProfile(image, source, srgb, intent, outputMode="RGB") or image
    except (OSError, ImageCms.PyCMSError) as error:
        _log.warning("the embedded colour profile cannot be used (%s); converted without it", error)
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _usable_profile(mode: str, icc: Any) -> Any:
    """The parsed profile if it describes this kind of picture and says anything but plain sRGB; else None."""
    if not isinstance(icc, bytes) or not 0 < len(icc) <= MAX_PROFILE_BYTES:
        return ImageCms.createProfile("LAB") if mode == "LAB" else None
    profile: Any = ImageCms.ImageCmsProfile(BytesIO(icc))
    space, description = profile.profile.xcolor_space.strip(), profile.profile.profile_description or ""
    if space != {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}[mode]:
        _log.warning("a colour profile for %r is embedded in a picture of mode %s; passed over", space, mode)
        return None
    # Converting sRGB to sRGB would only add rounding errors to the most common case of all.
    return None if space == "RGB" and description.startswith("sRGB") else profile
