"""AVIF and HEIC, files of boxes (ISO/IEC 14496-12, 23008-12): every size in them is checked before a decoder looks.

Pillow decodes AVIF, pillow-heif HEIC. Both narrow 10 and 12 bits to 8, and have the orientation from the boxes (Pillow
hands it on as EXIF), which have the last word: EXIF and XMP in the file are hidden, since reading them may be costly.
Behind a small size in its boxes an AVIF may hide a large picture: up to libavif's own limit of 16,384 x 16,384 pixels
that is decoded before it is scaled down to the size in the boxes. libheif refuses such files.
"""

import re
from collections.abc import Iterator
from io import BytesIO

from PIL import ImageFile
from PIL.AvifImagePlugin import AvifImageFile

from seecoder.images.header import BadImage, check_size, unpack

_BRANDS = re.compile(rb"(avif|avis)|(hei[cmsx]|hev[cmsx])")
_MAX_BOXES = 5000  # side by side
_MAX_TABLE_BYTES = 65_536  # of where items are and which properties they have: decoders search these again and again
_TABLE = re.compile(rb"(....)(?:iloc|ipma|iref)", re.DOTALL)
# Of the image, its tiles, its thumbnails; of tracks in 16.16 bits, in two versions.
_SIZE = re.compile(rb"ispe....(?P<w>....)(?P<h>....)|tkhd(?:\x00.{75}|\x01.{87})(?P<W>..)..(?P<H>..)", re.DOTALL)
_METADATA = re.compile(rb"(infe(?:[\x00-\x02].{7}|[\x03-\xff].{9}))(?:Exif|mime)", re.DOTALL)


def open_isobmff(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """Open an AVIF or HEIC file: its primary image, or the first frame of a sequence."""
    brands = _BRANDS.search(data[8 : unpack(">I", data, 0)[0]])
    if brands is None:
        raise BadImage(f"this is a video or another file of boxes (brand {data[8:12]!r}), not an AVIF or HEIC picture")
    without_metadata, width = bytearray(data), 0
    for start, end in _tables(data):
        for table in _TABLE.finditer(data, start, end):
            if int.from_bytes(table[1], "big") > _MAX_TABLE_BYTES:
                raise BadImage("the file is damaged: more items than a picture has")
        for size in _SIZE.finditer(data, start, end):
            width, height = (int.from_bytes(size[side] or size[side.upper()], "big") for side in "wh")
            if width * height > max_pixels + 64 * (width + height):  # encoders pad to 64 pixels, and crop that again
                check_size(width, height, max_pixels)
        without_metadata[start:end] = _METADATA.sub(rb"\1none", data[start:end])
    if not width:
        raise BadImage("the file is truncated or damaged: no box says how large the picture is")
    if brands[1]:
        return AvifImageFile(BytesIO(without_metadata))
    try:
        from pillow_heif.as_plugin import HeifImageFile
    except ImportError:
        raise BadImage("this is an HEIC picture, which needs one more package: pip install 'seecoder[heif]'") from None
    return HeifImageFile(BytesIO(without_metadata))


def _tables(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the boxes begin and end that say what is in the file."""
    position = 0
    for _ in range(_MAX_BOXES):
        if position == len(data):
            return
        (length,), kind, start = unpack(">I", data, position), data[position + 4 : position + 8], position + 8
        if length == 1:
            (length,), start = unpack(">Q", data, start), start + 8
        end = position + length if length else len(data)
        if not start <= end <= len(data):
            raise BadImage("the file is truncated or damaged: a box reaches past the end")
        if kind in (b"meta", b"moov"):
            yield start, end
        position = end
    raise BadImage(f"the file is damaged: more than {_MAX_BOXES:,} boxes")
