"""From a checked header to numbers: decode with Pillow, apply the colour profile, keep the range of deep greyscale."""

import logging
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from seecoder.images.header import BadImage, Header

_log = logging.getLogger("seecoder.images")


class _TiffFile(TiffImagePlugin.TiffImageFile):
    """Pillow's TIFF reader without its own pixel limit: ours was checked before, and is the caller's to set."""

    def load_prepare(self) -> None:
        ImageFile.ImageFile.load_prepare(self)


# The classes behind `Image.open`. Used directly they know no pixel limit of their own, so that a larger `max_pixels`
# needs no change of the process-wide `Image.MAX_IMAGE_PIXELS` (which other threads may rely on), and no format outside
# this table (Pillow knows more than forty, one of which starts Ghostscript) can be reached.
_DECODERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "TIFF": _TiffFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}


@dataclass(frozen=True)
class Raster:
    """Decoded pixels: `colour` (H, W) or (H, W, 3), uint8 or float32 in [0, 1]; `alpha` (H, W) likewise, if any."""

    colour: np.ndarray
    alpha: np.ndarray | None = None


def decode(header: Header) -> Raster:
    """Decode the reduced file of `header`, not yet upright.

    Raises:
        BadImage: If the decoder finds another size than the header; Pillow's own exceptions for damaged data.
    """
    image = _DECODERS[header.format](BytesIO(header.reduced))
    if image.size != (header.width, header.height):
        raise BadImage(f"the file is damaged: {header.width} x {header.height} pixels announced, {image.size} found")
    image.load()
    raster = rasterise(image, header.icc, header)
    if header.covered is None:
        return raster
    top, bottom, left, right = header.covered
    alpha = np.zeros((header.height, header.width), np.uint8)
    alpha[top:bottom, left:right] = 255 if raster.alpha is None else raster.alpha[top:bottom, left:right]
    return Raster(raster.colour, alpha)


def rasterise(image: Image.Image, icc: bytes | None, header: Header | None = None) -> Raster:
    """Pixels of a loaded Pillow image of any mode.

    Args:
        image: A loaded image; it is not changed.
        icc: Its colour profile.
        header: What is known of the file that it came from.
    """
    if image.mode.startswith("I;16"):
        return _sixteen_bit(image, header)
    if image.mode in ("I", "F"):
        return Raster(_wide_grey(image, header))
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert(image.mode.upper())
    alpha = None
    if image.mode in ("1", "L", "P", "RGB", "LA", "PA", "RGBA") and image.has_transparency_data:
        grey = image.mode in ("1", "L", "LA")
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"))
        image = image.getchannel("R") if grey else image  # a grey picture stays grey: its profile is for grey
    return Raster(np.asarray(_to_srgb(image, icc)), alpha)


def _sixteen_bit(image: Image.Image, header: Header | None) -> Raster:
    values = np.asarray(image)
    transparent = image.info.get("transparency")
    alpha = None if not isinstance(transparent, int) else np.where(values == transparent, 0, 255).astype(np.uint8)
    grey = values.astype(np.float32) / np.float32(header.grey_levels if header else 65535)
    if header and header.white_is_zero:
        grey = 1 - grey
    return Raster(np.clip(grey, 0, 1), alpha)


def _wide_grey(image: Image.Image, header: Header | None) -> np.ndarray:
    """32-bit integers or floats, whose range no file format states, as (H, W) float32 in [0, 1].

    Floats within [0, 1] and integers within 16 bits are taken at their word, as most writers mean them; everything
    else is stretched from its minimum to its maximum, and the log says so.
    """
    values = np.asarray(image)
    if image.mode == "I" and header is not None and header.unsigned:
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


def _to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    """Any 8-bit mode to RGB in sRGB; a profile that cannot be used is passed over, as browsers do."""
    if image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    source = _usable_profile(image, icc) if icc else None
    if source is None and image.mode == "LAB":
        source = ImageCms.createProfile("LAB")
    if source is not None:
        try:
            # The perceptual intent is the one that profiles carry tables for, and what browsers use by default.
            converted = ImageCms.profileToProfile(
                image, source, ImageCms.createProfile("sRGB"), ImageCms.Intent.PERCEPTUAL, outputMode="RGB"
            )
        except ImageCms.PyCMSError as error:
            _log.warning("the embedded colour profile cannot be applied (%s); converted without it", error)
        else:
            return converted or image
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _usable_profile(image: Image.Image, icc: bytes) -> Any:
    """The parsed profile if it describes this kind of picture, and says anything but plain sRGB; else None."""
    try:
        profile: Any = ImageCms.ImageCmsProfile(BytesIO(icc))
        space, description = profile.profile.xcolor_space.strip(), profile.profile.profile_description or ""
    except (OSError, ImageCms.PyCMSError) as error:
        _log.warning("the embedded colour profile is damaged (%s); converted without it", error)
        return None
    if space != {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}[image.mode]:
        _log.warning("a colour profile for %r is embedded in a picture of mode %s; passed over", space, image.mode)
        return None
    # Converting sRGB to sRGB would only add rounding errors to the most common case of all.
    return None if space == "RGB" and description.startswith("sRGB") else profile
