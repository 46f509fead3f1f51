"""JPEG (ITU-T T.81): metadata other than the colour profile and the orientation is left out before Pillow parses it.

Pillow copies every EXIF tag whatever its size, and decodes as many scans as a progressive file claims to have.
"""

import re
from io import BytesIO

from PIL.JpegImagePlugin import JpegImageFile

from seecoder.images.header import BadImage, OpenedImage, check_size, unpack

_MAX_SEGMENTS = 10_000
_MAX_SCANS = 100  # a scan of a progressive JPEG is a pass over the whole image; encoders write about ten

# A marker that a length follows: not stuffed zeros, fill bytes, TEM, RST0-7 or SOI.
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])", re.DOTALL)
# Frame headers, tables, JFIF, Adobe's colour transform, colour profile.
_NEEDED = re.compile(rb"\xff([\xc0-\xcf\xdb\xdd]|\xe0..JFIF\0|\xee..Adobe|\xe2..ICC_PROFILE\0)", re.DOTALL)
_SCAN_OR_END = re.compile(rb"\xff[\xda\xd9]")


def open_jpeg(data: bytes, max_pixels: int) -> OpenedImage:
    """Open the first image of a JPEG file; what follows it, such as a second view, is not looked at."""
    kept, exif, position = [b"\xff\xd8"], b"", 2
    for _ in range(_MAX_SEGMENTS):
        marker = _MARKER.search(data, position)
        if marker is None or marker[1] == b"\xd9":
            raise BadImage("the file is truncated: it ends before the picture begins")
        if marker[1] == b"\xda":
            break
        position = marker.end() + unpack(">H", data, marker.end())[0]
        segment = data[marker.start() : position]
        if _NEEDED.match(segment):
            kept.append(segment)
        elif segment.startswith(b"Exif\0\0", 4) and marker[1] == b"\xe1" and not exif:
            exif = segment[4:]
    else:
        raise BadImage(f"the file is damaged: more than {_MAX_SEGMENTS:,} segments before the picture")
    kept.append(data[marker.start() : _end_of_image(data, marker.start())])
    image = JpegImageFile(BytesIO(b"".join(kept)))
    check_size(*image.size, max_pixels)
    image.info["exif"] = exif
    return OpenedImage(image)


def _end_of_image(data: bytes, first_scan: int) -> int:
    """Where the end-of-image marker ends; in the data of scans 0xFF is always followed by zero or a restart marker."""
    for scans, found in enumerate(_SCAN_OR_END.finditer(data, first_scan)):
        if found[0] == b"\xff\xd9":
            return found.end()
        if scans >= _MAX_SCANS:
            raise BadImage(f"the file has more than {_MAX_SCANS} scans, made to keep a decoder busy")
    raise BadImage("the file is truncated: the end of the picture is missing")
