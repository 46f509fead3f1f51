"""Pictures in: the only door through which they enter.

`load_image` takes whatever users have (a path, bytes, a Pillow image, an array, a tensor) and returns upright RGB in
[0, 1], or raises `ImageError` with the name of the source and the reason. What it takes care of, and what Pillow alone
leaves to the caller:

* only JPEG, PNG, WEBP, TIFF, BMP, GIF, AVIF and HEIC, told by content, never by suffix;
* the number of pixels is checked against `max_pixels` before anything is decoded, without touching Pillow's limit;
* orientation is applied, from EXIF or from the boxes of AVIF and HEIC (its copy in XMP is not read, as in browsers);
* the first frame of an animation is taken;
* 16- and 32-bit greyscale keep their range; of deeper *colour* the upper 8 bits are read, as Pillow keeps no more;
* transparency is composited on a background; CMYK and foreign RGB profiles are converted to sRGB;
* what a file says of its resolution (DPI) is not asked for: pixels are pixels;
* a file that lost its tail is refused, even if another library set `ImageFile.LOAD_TRUNCATED_IMAGES`.

Memory stays below 35 bytes a pixel plus three times the file. All of it may be called from several threads.
"""

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile

from seecoder.checks import require, whole
from seecoder.images.colours import rasterise
from seecoder.images.formats.isobmff import open_isobmff
from seecoder.images.formats.png import open_png
from seecoder.images.formats.streams import open_bmp, open_gif, open_jpeg, open_webp
from seecoder.images.formats.tiff import open_tiff
from seecoder.images.header import BadImage, check_size, orientation_from_exif, warn_of_frames

Source = str | os.PathLike | bytes | bytearray | memoryview | Image.Image | np.ndarray | torch.Tensor
Decoder = Callable[[Image.Image, bytes], np.ndarray]  # an opened file and its bytes -> what `rasterise` makes of it

MAX_PIXELS = 64_000_000  # of a file, unless the caller says otherwise
ROUNDING = 1e-3  # how far floats may leave [0, 1] before it is an error rather than rounding
_MAX_BYTES_PER_PIXEL = 16  # no honest file of one picture is larger, but for its metadata
_MAX_METADATA_BYTES = 64 * 1024 * 1024
_ALLOWED_UNLOADED = {"JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIF"}  # MPO: a JPEG and one more


class ImageError(ValueError):
    """A picture that cannot be used.

    Attributes:
        source: Path or description of the picture.
        reason: What is wrong with it.
    """

    def __init__(self, source: str, reason: str = "") -> None:
        # Both go into args: that is what pickle rebuilds the exception from, in worker processes for instance.
        super().__init__(source, reason)
        self.source, self.reason = source, reason

    def __str__(self) -> str:
        return f"`{self.source}`: {self.reason}" if self.reason else self.source


def load_image(
    source: Source, *, max_pixels: int = MAX_PIXELS, background: tuple[int, int, int] = (255, 255, 255)
) -> torch.Tensor:
    """Load one picture as upright RGB.

    Args:
        source: A path; the bytes of a file; a Pillow image (its current frame); an array, (H, W) or (H, W, 1 to 4),
            bool, uint8, uint16 or float in [0, 1]; or a tensor, (H, W) or (1 to 4, H, W), bool, uint8 or float in
            [0, 1]. Of two or four channels the last is alpha.
        max_pixels: Larger files are refused before they are decoded. Raise it for sources that you trust. What is in
            memory already, such as a result, is not limited.
        background: What shows through transparent pixels, as RGB in 0-255.

    Returns:
        (3, H, W) float32 in [0, 1], on the CPU, sharing no memory with `source`.

    Raises:
        ImageError: If there is no usable picture: missing, not a regular file, of another format, damaged, truncated,
            empty, too large, not finite. Its message names the source and the reason.
        TypeError: If `source` is of none of these types.
        ValueError: If `max_pixels` or `background` is out of range.
    """
    if len(background) != 3 or not all(0 <= level <= 255 for level in background):
        raise ValueError(f"`background`={background} must be three levels (red, green, blue) in 0-255.")
    return to_tensor(read_pixels(source, max_pixels), background)


def read_pixels(source: Source, max_pixels: int, decoder: Decoder | None = None) -> np.ndarray:
    """Read one picture as it is, with its transparency; arguments and errors are those of `load_image`.

    `decoder` takes the place of `rasterise` for a file.

    Returns:
        (H, W, C) upright pixels, uint8 or float32 in [0, 1]: grey or RGB, and if C is 2 or 4, alpha behind.
    """
    require("max_pixels", max_pixels, whole(1))
    name = describe(source)
    try:
        return _read(source, max_pixels, decoder)
    except BadImage as error:
        raise ImageError(name, str(error)) from None
    except MemoryError:
        raise ImageError(name, "there is not enough memory to decode it") from None
    # Decoders meet hostile bytes here, and raise whatever their authors did not think of (struct.error, IndexError,
    # ZeroDivisionError, SyntaxError, ...). The promise of this function is that callers need to know none of that.
    except Exception as error:
        reason = ascii(str(error))[1:200].rstrip("'\"")  # on one line, whatever the bytes of the file put into it
        raise ImageError(name, f"it cannot be decoded ({type(error).__name__}: {reason})") from error


def describe(source: Source) -> str:
    """A name for messages, on one line and of bounded length."""
    if isinstance(source, str | os.PathLike):
        name = os.fsdecode(source)
        name = name if name.isprintable() else ascii(name)[1:-1]
        return name if len(name) <= 300 else f"{name[:150]}...{name[-150:]}"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"{len(source):,} bytes"
    if not isinstance(source, Source):
        raise TypeError(f"`source` is a {type(source).__name__}; needed: a path, bytes, Pillow image, array or tensor")
    return f"{type(source).__name__} of {source.size if isinstance(source, Image.Image) else tuple(source.shape)}"


def _read(source: Source, max_pixels: int, decoder: Decoder | None) -> np.ndarray:
    if isinstance(source, torch.Tensor):
        tensor = source.detach().cpu()
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        source = (tensor.permute(1, 2, 0) if tensor.ndim == 3 else tensor).numpy()
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        unloaded = getattr(source, "_im", None) is None or bool(getattr(source, "tile", None))
        if isinstance(source, ImageFile.ImageFile) and unloaded and source.format not in _ALLOWED_UNLOADED:
            raise BadImage(f"{source.format} files are not decoded; load it yourself if you trust the source")
        check_size(*source.size, max_pixels if unloaded else source.width * source.height)
        return _upright(source, rasterise(source))
    limit = _MAX_BYTES_PER_PIXEL * max_pixels + _MAX_METADATA_BYTES
    data = _read_file(source, limit) if isinstance(source, str | os.PathLike) else bytes(source)
    _check_bytes(len(data), limit)
    image = open_image(data, max_pixels)
    return _upright(image, rasterise(image) if decoder is None else decoder(image, data))


def _read_file(path: str | os.PathLike[str], limit: int) -> bytes:
    try:
        facts = os.stat(path)  # before opening: that would wait for the writer of a pipe, and a device may do anything
        if stat.S_ISDIR(facts.st_mode):
            raise BadImage("it is a folder, not a file")
        if not stat.S_ISREG(facts.st_mode):
            raise BadImage("it is not a regular file (a pipe, a socket or a device)")
        _check_bytes(facts.st_size, limit)
        with open(path, "rb") as file:
            return file.read(facts.st_size)
    except FileNotFoundError:
        is_url = os.fsdecode(path).startswith(("http:", "https:", "data:"))
        raise BadImage("there is no such file" + (" (addresses are not fetched)" if is_url else "")) from None
    except OSError as error:
        raise BadImage(f"it cannot be read ({error.strerror or error})") from None


def _check_bytes(length: int, limit: int) -> None:
    if length > limit:
        raise BadImage(f"{length:,} bytes are more than a picture of the allowed size can need")


def _from_array(values: np.ndarray) -> np.ndarray:
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] not in (1, 2, 3, 4):
        raise BadImage("arrays must be (H, W) or (H, W, 1 to 4), tensors (H, W) or (1 to 4, H, W): one picture")
    check_size(values.shape[1], values.shape[0], values.size)
    values = values.astype(np.float32) if values.dtype == np.bool_ else values
    if values.dtype.kind == "u" and 0 < (top := values.max()) <= (1 if values.dtype == np.uint8 else 255):
        raise BadImage(f"its values are 0 to {top}, black in {values.dtype}; make bool or floats of them")
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:  # of either byte order
        return values.astype(np.float32) / np.float32(65535)
    if values.dtype == np.uint8:
        return values
    if not np.issubdtype(values.dtype, np.floating):
        raise BadImage(f"{values.dtype} is not understood; bool, uint8, uint16 (arrays) or float in [0, 1] is needed")
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(values).all():
        raise BadImage("it contains NaN or infinite values")
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise BadImage(f"its values range from {low:g} to {high:g}; floats must lie in [0, 1]")
    return np.clip(values, 0, 1).astype(np.float32)


def _upright(image: Image.Image, values: np.ndarray) -> np.ndarray:
    """Undo the camera's orientation (EXIF 2.32, section 4.6.4: which edges row 0 and column 0 of the file show)."""
    exif = image.info.get("exif")
    # A TIFF needs no turning: Pillow does that on loading, and only for this format.
    orientation = orientation_from_exif(exif) if isinstance(exif, bytes) and image.format != "TIFF" else 1
    values = values.swapaxes(0, 1) if orientation >= 5 else values
    values = values[::-1] if orientation in (3, 4, 7, 8) else values
    return values[:, ::-1] if orientation in (2, 3, 6, 7) else values


def to_tensor(values: np.ndarray, background: tuple[int, int, int]) -> torch.Tensor:
    """Pixels of `read_pixels` as (3, H, W) float32; alpha blends in the stored (sRGB) values, as in browsers."""
    planes = torch.from_numpy(np.moveaxis(values, 2, 0).astype(np.float32, order="C"))
    planes = planes.div_(255) if values.dtype == np.uint8 else planes
    colour = planes[:3] if len(planes) > 2 else planes[:1]
    if len(planes) in (2, 4):
        ground = torch.tensor(background).div(255)[:, None, None]
        colour = torch.lerp(ground.expand(3, *colour.shape[1:]), colour.expand(3, -1, -1), planes[-1:]).clamp_(0, 1)
    return colour.expand(3, -1, -1).contiguous()


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
    """Open the first image of a file after the checks of its format, each bounded by the length of the file.

    Raises:
        BadImage: If the format is not one of the eight, or the file is truncated, damaged, larger than `max_pixels` or
            made to cost more than it is worth. On damage Pillow raises exceptions of its own, too.
    """
    for signature, opener in _OPENERS:
        if signature.match(data):
            image = opener(data, max_pixels)
            check_size(*image.size, max_pixels)
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


def is_image_file(path: Path) -> bool:
    """Whether a path is a file of a format that is read, by how it begins."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(64)
    return any(signature.match(head) for signature, _ in _OPENERS)
