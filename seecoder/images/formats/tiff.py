"""TIFF (TIFF 6.0): the first page, if its directory is one that honest writers make.

A directory is a list of pointers into the file. Nothing in the format stops 65,535 entries from naming the same 20 MB,
or a list of strips from covering the image a thousand times; readers that follow such pointers copy gigabytes.
"""

from io import BytesIO

import numpy as np
from PIL import Image, ImageFile, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from seecoder.images.header import BadImage, check_size, read_directory, unpack

# None, fax, LZW, JPEG, deflate, packbits, Zstandard. Left out are LZMA (its dictionary may claim gigabytes), WebP (not
# in Pillow's libtiff), the JPEG of 1992 and what nobody has written for decades.
_COMPRESSIONS = {1, 2, 3, 4, 5, 7, 8, 32773, 32946, 50000}
_BYTES_OF_TYPE = np.array([0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8, 0], np.float64)
_MAX_ENTRIES = 1000
_MAX_BLOCKS = 131_072  # strips or tiles
_MAX_TILE = 2048  # a tile may be larger than the image, but not without bound: decoders allocate it whole
_MAX_REREADING = 8  # how often the strips together may cover the file; honest strips do not overlap at all


class _TiffFile(TiffImageFile):
    """Pillow's TIFF reader without its own pixel limit (ours is the caller's to set), and without EXIF and XMP."""

    def load_prepare(self) -> None:
        if self._im is None:
            self.im = Image.core.new(self.mode, self._tile_size)
        ImageFile.ImageFile.load_prepare(self)

    def load_end(self) -> None:
        self.info.pop("xmp", None)  # it may name an orientation, too
        ImageOps.exif_transpose(self, in_place=True)


def open_tiff(data: bytes, max_pixels: int) -> TiffImageFile:
    """Open the first page of a TIFF file."""
    _check_directory(data)
    try:
        image = _TiffFile(BytesIO(data))
    except SyntaxError as error:
        if "unknown pixel mode" not in str(error):
            raise
        raise BadImage("this kind of TIFF (unknown pixel mode) is not read; save 8 or 16 bits a channel") from None
    check_size(*image.size, max_pixels)
    compression = image.tag_v2.get(259, 1)
    if compression not in _COMPRESSIONS:
        raise BadImage(f"TIFF compression {compression} is not read; save it as PNG, or as TIFF with deflate")
    _check_blocks(image, len(data))
    return image


def _check_directory(data: bytes) -> None:
    """Refuse a first directory with repeated entries, or whose entries claim more bytes than the file has."""
    tags, types, counts, values, end = read_directory(data)
    unpack("4x", data, end)  # where the next directory is closes this one
    sizes = counts * np.take(_BYTES_OF_TYPE, types, mode="clip")
    ends = np.where(sizes > 4, values + sizes, 0.0)
    blocks = counts[np.isin(tags, (273, 279, 324, 325))]
    if len(tags) > _MAX_ENTRIES or len(np.unique(tags)) < len(tags):
        raise BadImage(f"the file is damaged: its directory has an entry twice, or more than {_MAX_ENTRIES:,}")
    if max(ends.max(initial=0), sizes.sum()) > len(data) or blocks.max(initial=0) > _MAX_BLOCKS:
        raise BadImage("the file is truncated or damaged: its directory claims bytes that are not there")


def _check_blocks(image: TiffImageFile, file_bytes: int) -> None:
    """Check that strips or tiles lie in the file and cover the image once."""
    tags, (width, height) = image.tag_v2, image._tile_size
    if 273 in tags:  # strips: offsets, rows a strip, bytes
        columns, rows = width, min(tags.get(278, height), height)
        offsets, lengths = tags[273], tags.get(279, ())
    else:  # tiles: width, height, offsets, bytes
        columns, rows = tags[322], tags[323]
        offsets, lengths = tags[324], tags.get(325, ())
    if not 1 <= columns <= max(width + 15, _MAX_TILE) or not 1 <= rows <= max(height + 15, _MAX_TILE):
        raise BadImage(f"tiles or strips of {columns} x {rows} do not suit an image of {width:,} x {height:,} pixels")
    planes = tags.get(277, 1) if tags.get(284, 1) == 2 else 1
    needed = planes * -(-width // columns) * -(-height // rows)
    if not len(offsets) == len(lengths) == needed:
        raise BadImage(f"the file is damaged: {len(offsets):,} strips or tiles where the picture needs {needed:,}")
    ends, total = np.add(offsets, lengths, dtype=np.float64), np.sum(lengths, dtype=np.float64)
    if ends.max() > file_bytes or total > _MAX_REREADING * file_bytes:
        raise BadImage("the file is truncated or damaged: strips or tiles reach past the end")
