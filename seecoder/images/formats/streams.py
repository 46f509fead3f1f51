"""JPEG (ITU-T T.81), GIF89a and BMP, which Pillow reads piece by piece: from a file that has an end, and not for ever.

EXIF is not parsed, and of several frames the first is taken. The size of a WebP (RFC 9649) is read before it is opened:
Pillow allocates the whole canvas as soon as that happens.
"""

import re
from io import BytesIO

from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.WebPImagePlugin import WebPImageFile

from seecoder.images.header import BadImage, check_size, unpack, warn_of_frames

_MAX_READS = 1_000_000  # Pillow reads files of tiny pieces in Python, a microsecond each
_MAX_SCANS = 100  # a scan of a progressive JPEG is a pass over the whole image; encoders write about ten
_MAX_EXIF_BLOCKS = 100  # Pillow joins them, and copies what it has with each
_SCAN_OR_END = re.compile(rb"\xff[\xda\xd9]")
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_MAX_GIF_READS = 10_000  # two a block of 255 bytes; Pillow copies a comment again with every block of it
_MAX_RLE_WIDTH = 65_535  # a jump of four bytes in a BMP allocates up to 255 rows at once


class BoundedFile(BytesIO):
    """A file in memory that has an end, whatever `ImageFile.LOAD_TRUNCATED_IMAGES` says, and only so many pieces."""

    reads, max_reads = 0, _MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as `BytesIO` does; past the end, or in more pieces than an honest file has, the file is a `BadImage`."""
        self.reads += 1
        if self.reads > self.max_reads:
            raise BadImage("the file is damaged: it has more parts than a picture")
        content = super().read(size)
        if not content and size:
            raise BadImage("the file is truncated: the end of the picture is missing")
        return content


class _JpegFile(JpegImageFile):
    """Pillow's reader without its search for a density, which copies every EXIF tag whatever size it claims."""

    is_plain = False  # grey or RGB without a profile, one sequential scan and then the end: decoders read it alike

    def _read_dpi_from_exif(self) -> None:
        pass


def open_jpeg(data: bytes, max_pixels: int) -> JpegImageFile:
    """Open the first image of a JPEG file; what follows it, a second view or a film, is not looked at."""
    if data.count(b"Exif\0\0") > _MAX_EXIF_BLOCKS:
        raise BadImage(f"the file is damaged: it has more than {_MAX_EXIF_BLOCKS} EXIF blocks")
    file = BoundedFile(data)
    image = _JpegFile(file)
    check_size(*image.size, max_pixels)
    # In the data of scans 0xFF is always followed by zero, itself or a restart marker.
    first = _MARKER.search(data, file.tell())
    is_sequential = first is not None and first[0] == b"\xff\xd9" and "progressive" not in image.info
    image.is_plain = is_sequential and image.mode in ("L", "RGB") and "icc_profile" not in image.info
    for scans, found in enumerate(_SCAN_OR_END.finditer(data, first.start() if first else len(data)), 1):
        if found[0] == b"\xff\xd9":
            return image
        if scans >= _MAX_SCANS:
            raise BadImage(f"the file has more than {_MAX_SCANS} scans, made to keep a decoder busy")
    raise BadImage("the file is truncated: the end of the picture is missing")


class _GifFile(GifImageFile):
    """Pillow's reader for the first frame alone."""

    is_animated = False  # pyright: ignore[reportAssignmentType]  # Pillow would read on, to the second frame


def open_gif(data: bytes, max_pixels: int) -> Image.Image:
    """Open the first frame of a GIF file; one that leaves part of its canvas empty is decoded, too."""
    file = BoundedFile(data)
    file.max_reads = _MAX_GIF_READS
    image = _GifFile(file)
    check_size(*image.size, max_pixels)
    if data.count(b"!\xf9\x04") > 1:  # the control blocks of several frames
        warn_of_frames()
    box = image.tile[0].extents
    if box is None or box == (0, 0, *image.size):
        return image
    canvas = Image.new("RGBA", image.size)
    canvas.paste(image.convert("RGBA").crop(box), box)
    return canvas


def open_bmp(data: bytes, max_pixels: int) -> BmpImageFile:
    """Open a BMP file whose run lengths do not allocate gigabytes."""
    image = BmpImageFile(BoundedFile(data))
    check_size(*image.size, max_pixels)
    if image.tile[0].codec_name == "bmp_rle" and image.width > _MAX_RLE_WIDTH:
        raise BadImage(f"a run-length coded BMP of {image.width:,} pixels a row takes too long; save it as PNG")
    return image


def open_webp(data: bytes, max_pixels: int) -> WebPImageFile:
    """Open a WebP file, or the first frame of an animated one."""
    end = 8 + unpack("<I", data, 4)[0]
    if end > len(data):
        raise BadImage(f"the file is truncated: {len(data):,} of {end:,} bytes are there")
    check_size(*_webp_size(data), max_pixels)
    return WebPImageFile(BytesIO(data))


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height from the first chunk: an extended, a lossy or a lossless file."""
    if data.startswith(b"VP8X", 12):
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data.startswith(b"VP8 ", 12) and data.startswith(b"\x9d\x01\x2a", 23):
        width, height = unpack("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if data.startswith(b"VP8L", 12) and data.startswith(b"\x2f", 20):
        (bits,) = unpack("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    raise BadImage("the file is damaged: no WebP picture where it should begin")
