"""Pictures in and out: the only door through which pictures enter.

`load_image` takes whatever users have (a path, bytes, a Pillow image, an array, a tensor) and returns upright RGB in
[0, 1], or raises `ImageError` with the name of the source and the reason. What it takes care of, and what Pillow alone
leaves to the caller:

* only JPEG, PNG, WEBP, TIFF, BMP and GIF, told by content, never by suffix;
* the number of pixels is checked against `max_pixels` before anything is decoded, without touching Pillow's limit;
* EXIF orientation is applied (its copy in XMP is not read, as in browsers); the first frame of an animation is taken;
* 16- and 32-bit greyscale keep their range; of 16-bit *colour* the upper 8 bits are read, as Pillow keeps no more;
* transparency is composited on a background; CMYK and foreign RGB profiles are converted to sRGB;
* a file that lost its tail is refused, even if another library set `ImageFile.LOAD_TRUNCATED_IMAGES`.

Memory stays below 30 bytes a pixel plus three times the file. All of it may be called from several threads.
"""

import logging
import math
import os
import stat
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile
from torch.nn import functional

from seecoder.images.containers import read_header
from seecoder.images.decoding import Raster, decode, rasterise
from seecoder.images.header import BadImage, orientation_from_exif
from seecoder.weights.atomic import atomic_path

__all__ = ["ENCODED_SIZE", "ImageError", "limit_area", "load_image", "save_image", "to_pil"]

ENCODED_SIZE = 512  # pixels; what released encoders were trained on, and the default of `image_size`

_log = logging.getLogger(__name__)

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | np.ndarray | torch.Tensor

# No honest file of one picture is larger than this many bytes a pixel, plus some for metadata.
_MAX_BYTES_PER_PIXEL = 16
_MAX_METADATA_BYTES = 64 * 1024 * 1024
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_ALLOWED_UNLOADED = {"JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF"}  # MPO: a JPEG with a second one behind it
_BLOCK_PIXELS = 65_536  # converted at a time: what fits the cache takes a third of the time of whole pictures
_ROUNDING = 1e-3  # how far floats may leave [0, 1] before it is an error rather than rounding


class ImageError(ValueError):
    """A picture that cannot be used.

    Attributes:
        source: Path or description of the picture.
        reason: What is wrong with it.
    """

    def __init__(self, source: str, reason: str = "") -> None:
        # Both go into args: that is what pickle rebuilds the exception from, in worker processes for instance.
        super().__init__(source, reason)
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return f"`{self.source}`: {self.reason}" if self.reason else self.source


def load_image(
    source: Source, *, max_pixels: int = 64_000_000, background: tuple[int, int, int] = (255, 255, 255)
) -> torch.Tensor:
    """Load one picture as upright RGB.

    Args:
        source: A path; the bytes of a file; a Pillow image (its current frame); an array, (H, W) or (H, W, 1 to 4),
            uint8, uint16 or float in [0, 1]; or a tensor, (H, W) or (1 to 4, H, W), uint8 or float in [0, 1]. Of two
            or four channels the last is alpha.
        max_pixels: Larger pictures are refused, files before they are decoded. Raise it for sources that you trust.
        background: What shows through transparent pixels, as RGB in 0-255.

    Returns:
        (3, H, W) float32 in [0, 1], on the CPU, sharing no memory with `source`.

    Raises:
        ImageError: If there is no usable picture: missing, not a regular file, of another format, damaged, truncated,
            empty, too large, not finite. Its message names the source and the reason.
        TypeError: If `source` is of none of these types.
        ValueError: If `max_pixels` or `background` is out of range.
    """
    if max_pixels < 1:
        raise ValueError(f"`max_pixels`={max_pixels} is not a positive number of pixels")
    if len(background) != 3 or not all(0 <= level <= 255 for level in background):
        raise ValueError(f"`background`={background} is not three levels (red, green, blue) in 0-255")
    name = _describe(source)
    try:
        raster, orientation = _read(source, name, max_pixels)
        return _to_tensor(_upright(raster, orientation), background)
    except BadImage as error:
        raise ImageError(name, str(error)) from None
    except MemoryError:
        raise ImageError(name, "there is not enough memory to decode it") from None
    # Decoders meet hostile bytes here, and raise whatever their authors did not think of (struct.error, IndexError,
    # ZeroDivisionError, SyntaxError, ...). The promise of this function is that callers need to know none of that.
    except Exception as error:
        reason = ascii(str(error))[1:200].rstrip("'\"")  # on one line, whatever the bytes of the file put into it
        raise ImageError(name, f"it cannot be decoded ({type(error).__name__}: {reason})") from error


def limit_area(pixels: torch.Tensor, side: int | None, *, smallest: int = 32) -> torch.Tensor:
    """Reduce a picture that has more pixels than a square of `side`, for an encoder that was trained on such squares.

    Bicubic with antialiasing. The aspect ratio is kept to a pixel, except where the shorter side would fall below
    `smallest`. Smaller pictures are returned as they are; nothing is ever enlarged.

    Args:
        pixels: (3, H, W) in [0, 1].
        side: Of the square, in pixels; None changes nothing.
        smallest: The shorter side is not reduced below this.

    Returns:
        (3, h, w) in [0, 1], h * w near side * side or below.

    Raises:
        ValueError: If `side` is below `smallest`.
    """
    if side is None:
        return pixels
    if side < smallest:
        raise ValueError(f"`image_size`={side} is too small; use {smallest} pixels or more, or None for the own size.")
    height, width = pixels.shape[-2:]
    if height * width <= side * side:
        return pixels
    share = side / math.sqrt(height * width)
    size = [max(min(length, smallest), round(share * length)) for length in (height, width)]
    small = functional.interpolate(pixels[None].float(), size=size, mode="bicubic", antialias=True)
    return small[0].clamp(0.0, 1.0).to(pixels.dtype)


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
        raise ValueError(f"`pixels` is {pixels.dtype} {tuple(pixels.shape)}; a float tensor (3, H, W) is needed")
    levels = pixels.detach().to("cpu", torch.float32)
    low, high = float(levels.min()), float(levels.max())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # written so that NaN fails too
        raise ValueError(f"`pixels` ranges from {low:g} to {high:g}; [0, 1] is needed. Clamp it first if that is meant")
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
    format = _FORMATS.get(Path(path).suffix.lower())
    if format is None:
        raise ValueError(f"`path`={os.fspath(path)} ends with none of {', '.join(_FORMATS)}")
    picture = to_pil(image) if isinstance(image, torch.Tensor) else image
    if format != "PNG" and picture.mode not in {"JPEG": ("RGB", "L"), "WEBP": ("RGB", "RGBA")}[format]:
        picture = to_pil(load_image(picture, max_pixels=max(1, picture.width * picture.height)))
    limit = {"PNG": 2**31 - 1, "JPEG": 65_500, "WEBP": 16_383}[format]
    if max(picture.size) > limit:
        raise ValueError(f"{format} holds at most {limit:,} pixels a side, the picture has {max(picture.size):,}")
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}, "PNG": {}}[format]
    with atomic_path(path) as partial, open(partial, "wb") as file:
        picture.save(file, format=format, **options)


def _describe(source: Source) -> str:
    """A name for messages, on one line and of bounded length."""
    if isinstance(source, str | os.PathLike):
        name = os.fsdecode(source)
        name = name if name.isprintable() else ascii(name)[1:-1]
        return name if len(name) <= 300 else f"{name[:150]}...{name[-150:]}"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"{len(source):,} bytes"
    if isinstance(source, Image.Image):
        return f"Pillow image {source.mode} {source.width} x {source.height}"
    if isinstance(source, np.ndarray | torch.Tensor):
        return f"{'tensor' if isinstance(source, torch.Tensor) else 'array'} {source.dtype} {tuple(source.shape)}"
    raise TypeError(f"`source` is a {type(source).__name__}; a path, bytes, Pillow image, array or tensor is needed")


def _read(source: Source, name: str, max_pixels: int) -> tuple[Raster, int]:
    """Decoded pixels and the EXIF orientation that is still to be applied."""
    if isinstance(source, Image.Image):
        return _from_pil(source, max_pixels)
    if isinstance(source, torch.Tensor):
        return _from_array(_channels_last(source), max_pixels), 1
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels), 1
    limit = _MAX_BYTES_PER_PIXEL * max_pixels + _MAX_METADATA_BYTES
    data = _read_file(source, limit) if isinstance(source, str | os.PathLike) else bytes(source)
    if len(data) > limit:
        raise BadImage(f"{len(data):,} bytes are more than a picture of {max_pixels:,} pixels can need")
    header = read_header(data)
    _check_size(header.width, header.height, max_pixels)
    if header.animated:
        _log_first_animation(name)
    return decode(header), header.orientation


def _read_file(path: str | os.PathLike[str], limit: int) -> bytes:
    try:
        # Asked before opening too: opening a pipe would wait for its writer, opening a device may do anything.
        _check_regular(os.stat(path).st_mode)
        with open(path, "rb", opener=_open_without_waiting) as file:
            facts = os.fstat(file.fileno())
            _check_regular(facts.st_mode)
            if facts.st_size > limit:
                raise BadImage(f"{facts.st_size:,} bytes are more than a picture of the allowed size can need")
            return file.read(facts.st_size)
    except FileNotFoundError:
        is_url = os.fsdecode(path).startswith(("http:", "https:", "data:"))
        raise BadImage("there is no such file" + (" (addresses are not fetched)" if is_url else "")) from None
    except OSError as error:
        raise BadImage(f"it cannot be read ({error.strerror or error})") from None


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_regular(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise BadImage("it is a folder, not a file")
    if not stat.S_ISREG(mode):
        raise BadImage("it is not a regular file (a pipe, a socket or a device)")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise BadImage(f"its size is {width} x {height}: it has no pixels")
    if width * height > max_pixels:
        raise BadImage(
            f"it has {width * height:,} pixels ({width:,} x {height:,}); the limit is {max_pixels:,}. "
            "Resize it, or pass a larger max_pixels if you trust the source"
        )


_animation_was_logged = False


def _log_first_animation(name: str) -> None:
    """Say once per process what happens to animations; a data set may hold a million of them."""
    global _animation_was_logged
    if not _animation_was_logged:
        _animation_was_logged = True
        _log.warning("`%s` has several frames or pages: of such files the first is used (said once)", name)


def _from_pil(image: Image.Image, max_pixels: int) -> tuple[Raster, int]:
    unloaded = getattr(image, "_im", None) is None or bool(getattr(image, "tile", None))
    if isinstance(image, ImageFile.ImageFile) and unloaded and image.format not in _ALLOWED_UNLOADED:
        raise BadImage(f"{image.format} files are not decoded; load it yourself if you trust the source")
    _check_size(*image.size, max_pixels)
    image.load()
    exif, icc = image.info.get("exif"), image.info.get("icc_profile")
    # A TIFF needs no turning: Pillow does that on loading, and only for this format.
    orientation = orientation_from_exif(exif) if isinstance(exif, bytes) and image.format != "TIFF" else 1
    return rasterise(image, icc if isinstance(icc, bytes) else None), orientation


def _channels_last(tensor: torch.Tensor) -> np.ndarray:
    if tensor.ndim != 2 and not (tensor.ndim == 3 and tensor.shape[0] in (1, 2, 3, 4)):
        raise BadImage("a tensor must be (H, W) or channels first, (1 to 4, H, W), and hold one picture")
    tensor = tensor.detach().to("cpu")
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    return (tensor if tensor.ndim == 2 else tensor.permute(1, 2, 0)).numpy()


def _from_array(values: np.ndarray, max_pixels: int) -> Raster:
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] not in (1, 2, 3, 4):
        raise BadImage("an array must be (H, W) or channels last, (H, W, 1 to 4), and hold one picture")
    _check_size(values.shape[1], values.shape[0], max_pixels)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:  # of either byte order
        values = values.astype(np.float32) / np.float32(65535)
    elif np.issubdtype(values.dtype, np.floating):
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(values).all():
            raise BadImage("it contains NaN or infinite values")
        if low < -_ROUNDING or high > 1 + _ROUNDING:
            raise BadImage(f"its values range from {low:g} to {high:g}; floats must lie in [0, 1]")
        values = np.clip(values, 0, 1).astype(np.float32)
    elif values.dtype != np.uint8:
        raise BadImage(f"{values.dtype} is not understood; uint8, uint16 (arrays) or float in [0, 1] is needed")
    channels = values.shape[2]
    colour = values[..., :3] if channels >= 3 else values[..., 0]
    return Raster(colour, values[..., -1] if channels in (2, 4) else None)


def _upright(raster: Raster, orientation: int) -> Raster:
    """Undo the camera's orientation (EXIF 2.32, section 4.6.4: which edges row 0 and column 0 of the file show)."""

    def turn(values: np.ndarray) -> np.ndarray:
        if orientation in (5, 6, 7, 8):
            values = values.swapaxes(0, 1)
        if orientation in (2, 3, 6, 7):
            values = values[:, ::-1]
        if orientation in (3, 4, 7, 8):
            values = values[::-1]
        return values

    return Raster(turn(raster.colour), None if raster.alpha is None else turn(raster.alpha))


def _to_tensor(raster: Raster, background: tuple[int, int, int]) -> torch.Tensor:
    """(3, H, W) float32; alpha blends linearly in the stored (sRGB) values, as browsers and image editors do."""
    height, width = raster.colour.shape[:2]
    pixels = np.empty((3, height, width), np.float32)
    rows = max(1, _BLOCK_PIXELS // width)
    for start in range(0, height, rows):
        block = slice(start, start + rows)
        planes, colour = pixels[:, block], raster.colour[block]
        planes[:] = colour if colour.ndim == 2 else colour.transpose(2, 0, 1)
        if colour.dtype == np.uint8:
            planes /= 255
        if raster.alpha is not None:
            _composite(planes, raster.alpha[block], background)
    return torch.from_numpy(pixels)


def _composite(planes: np.ndarray, alpha: np.ndarray, background: tuple[int, int, int]) -> None:
    opacity = alpha.astype(np.float32)
    if alpha.dtype == np.uint8:
        opacity /= 255
    for plane, level in zip(planes, background, strict=True):
        plane *= opacity
        plane += (1 - opacity) * np.float32(level / 255)
    np.minimum(planes, 1, out=planes)
