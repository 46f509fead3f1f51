"""BMP: run lengths that allocate gigabytes are refused; the rest is Pillow's."""

from PIL.BmpImagePlugin import BmpImageFile

from seecoder.images.header import BadImage, BoundedFile, check_size

_MAX_RLE_WIDTH = 65_535  # a jump of four bytes allocates up to 255 rows at once


def open_bmp(data: bytes, max_pixels: int) -> BmpImageFile:
    """Open a BMP file."""
    image = BmpImageFile(BoundedFile(data))
    check_size(*image.size, max_pixels)
    if image.tile[0].codec_name == "bmp_rle" and image.width > _MAX_RLE_WIDTH:
        raise BadImage(f"a run-length coded BMP of {image.width:,} pixels a row takes too long; save it as PNG")
    return image
