"""From Pillow's modes to numbers: grey or sRGB by the colour profile, the range of deep greyscale, transparency."""

import logging
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from seecoder.images.header import MAX_PROFILE_BYTES, BadImage

_log = logging.getLogger(__name__)


def rasterise(image: Image.Image) -> np.ndarray:
    """Load the pixels of a Pillow image of any mode.

    Returns:
        (H, W, C), uint8 or float32 in [0, 1]; C is 1 or 3 for grey or sRGB, 2 or 4 with alpha behind.
    """
    image.load()
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_grey(image)
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert(image.mode.upper())
    if image.mode not in ("1", "L", "P", "RGB", "LA", "PA", "RGBA") or not image.has_transparency_data:
        # Plane by plane, which Pillow does faster than NumPy could sort the channels later.
        return np.moveaxis(np.stack([np.asarray(band) for band in _to_srgb(image).split()]), 0, 2)
    grey = image.mode in ("1", "L", "LA")
    image = image.convert("RGBA")
    colour = image.getchannel("R") if grey else image  # a grey picture stays grey: its profile is for grey
    return np.dstack([np.asarray(_to_srgb(colour)), np.asarray(image.getchannel("A"))])


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
    if image.mode != "F" and 1 < high < 256:  # masks of 0 and 1 are told apart where masks are read
        _log.warning("16-bit greyscale up to %g of 65,535 is read: nearly black. Convert it if it means 8 bits", high)
    top = 1.0 if image.mode == "F" else 4095.0 if tags.get(258) == (12,) else 65535.0  # 12 bits stay 12 bits in 16
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


def _to_srgb(image: Image.Image) -> Image.Image:
    """Any 8-bit mode to grey or RGB in sRGB; a profile that cannot be used is passed over, as browsers do."""
    icc = image.info.get("icc_profile")
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
