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

from seecoder.images.header import BadImage, OpenedImage, check_size, unpack

_BRANDS = re.compile(rb"(avif|avis)|(hei[cmsx]|hev[cmsx])")
# Boxes that hold boxes, and the bytes of their own in front of these.
_CONTAINERS = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"iinf": 6, b"moov": 0, b"trak": 0}
_MAX_BOXES = 5000  # an image in 1,000 tiles has 1,000 items and some properties
_MAX_DEPTH = 5
_MAX_TABLE_BYTES = 65_536  # of where items are and which properties they have: decoders search these again and again


def open_isobmff(data: bytes, max_pixels: int) -> OpenedImage:
    """Open an AVIF or HEIC file: its primary image, or the first frame of a sequence."""
    brands = _BRANDS.search(data[8 : unpack(">I", data, 0)[0]])
    if brands is None:
        raise BadImage(f"this is a video or another file of boxes (brand {data[8:12]!r}), not an AVIF or HEIC picture")
    without_metadata, width, height = bytearray(data), 0, 0
    for number, (kind, start, end) in enumerate(_boxes(data, 0, len(data))):
        if number >= _MAX_BOXES or (kind in (b"iloc", b"ipma", b"iref") and end - start > _MAX_TABLE_BYTES):
            raise BadImage("the file is damaged: more items than a picture has")
        if kind == b"infe":
            item_type = start + (10 if data[start] > 2 else 8)  # behind an item number of 32 or 16 bits
            if data[item_type : item_type + 4] in (b"Exif", b"mime"):
                without_metadata[item_type : item_type + 4] = b"none"
        if kind in (b"ispe", b"tkhd"):  # of the image, its tiles, its thumbnails; of tracks in 16.16 bits
            width, height = unpack(">II", data, start + 4) if kind == b"ispe" else unpack(">HxxHxx", data, end - 8)
            if width * height > max_pixels + 64 * (width + height):  # encoders pad to 64 pixels, and crop that again
                check_size(width, height, max_pixels)
    if not width:
        raise BadImage("the file is truncated or damaged: no box says how large the picture is")
    image = (AvifImageFile if brands[1] else _heif_class())(BytesIO(without_metadata))
    check_size(*image.size, max_pixels)
    return OpenedImage(image, animated=getattr(image, "is_animated", False))


def _boxes(data: bytes, position: int, stop: int, depth: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """Kind of every box, those in containers too, and where its content begins and ends."""
    if depth > _MAX_DEPTH:
        raise BadImage(f"the file is damaged: boxes lie more than {_MAX_DEPTH} deep in each other")
    while position < stop:
        (length,), kind, start = unpack(">I", data, position), data[position + 4 : position + 8], position + 8
        if length == 1:
            (length,), start = unpack(">Q", data, start), start + 8
        end = position + length if length else stop
        if not start <= end <= stop:
            raise BadImage("the file is truncated or damaged: a box reaches past the end")
        yield kind, start, end
        if kind in _CONTAINERS:
            own = 8 if kind == b"iinf" and data[start] else _CONTAINERS[kind]  # later versions count in 32 bits
            yield from _boxes(data, start + own, end, depth + 1)
        position = end


def _heif_class() -> type[ImageFile.ImageFile]:
    try:
        from pillow_heif.as_plugin import HeifImageFile
    except ImportError:
        raise BadImage("this is an HEIC picture, which needs one more package: pip install 'seecoder[heif]'") from None
    return HeifImageFile
