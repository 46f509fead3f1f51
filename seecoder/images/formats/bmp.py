"""BMP: files that lost rows, and run lengths that take long, are refused; the rest is Pillow's."""

from io import BytesIO
from typing import Any

from PIL.BmpImagePlugin import BmpImageFile

from seecoder.images.header import BadImage, OpenedImage, check_size

_MAX_RLE_PIXELS = 16_000_000  # Pillow decodes run lengths in Python: a tenth of a microsecond a pixel
_MAX_RLE_WIDTH = 65_535  # ... in which one jump of four bytes allocates up to 255 rows at once


def open_bmp(data: bytes, max_pixels: int) -> OpenedImage:
    """Open a BMP file."""
    image: Any = BmpImageFile(BytesIO(data))
    width, height = image.size
    codec, _, start, arguments = image.tile[0]
    if codec == "bmp_rle" and (width > _MAX_RLE_WIDTH or width * height > _MAX_RLE_PIXELS):
        raise BadImage(f"a run-length coded BMP of {width:,} x {height:,} pixels takes too long; save it as PNG")
    check_size(width, height, max_pixels)
    if codec == "raw" and isinstance(arguments, tuple) and start + arguments[1] * height > len(data):
        raise BadImage("the file is truncated: rows are missing")
    return OpenedImage(image)
