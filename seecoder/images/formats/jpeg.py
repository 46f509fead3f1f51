"""JPEG (ITU-T T.81): EXIF is not parsed, and as many scans as a progressive file claims are not decoded."""

import re

from PIL.JpegImagePlugin import JpegImageFile

from seecoder.images.header import BadImage, BoundedFile, check_size

_MAX_SCANS = 100  # a scan of a progressive JPEG is a pass over the whole image; encoders write about ten
_MAX_EXIF_BLOCKS = 100  # Pillow joins them, and copies what it has with each
_SCAN_OR_END = re.compile(rb"\xff[\xda\xd9]")


class _JpegFile(JpegImageFile):
    """Pillow's reader without its search for a density, which copies every EXIF tag whatever size it claims."""

    def _read_dpi_from_exif(self) -> None:
        pass


def open_jpeg(data: bytes, max_pixels: int) -> JpegImageFile:
    """Open the first image of a JPEG file; what follows it, a second view or a film, is not looked at."""
    if data.count(b"Exif\0\0") > _MAX_EXIF_BLOCKS:
        raise BadImage(f"the file is damaged: it has more than {_MAX_EXIF_BLOCKS} EXIF blocks")
    file = BoundedFile(data)
    image = _JpegFile(file)
    check_size(*image.size, max_pixels)
    # In the data of scans 0xFF is always followed by zero or a restart marker.
    for scans, found in enumerate(_SCAN_OR_END.finditer(data, file.tell()), 1):
        if found[0] == b"\xff\xd9":
            return image
        if scans >= _MAX_SCANS:
            raise BadImage(f"the file has more than {_MAX_SCANS} scans, made to keep a decoder busy")
    raise BadImage("the file is truncated: the end of the picture is missing")
