"""WebP (RFC 9649): the size is read first, because Pillow allocates the canvas as soon as it opens the file."""

from io import BytesIO

from PIL.WebPImagePlugin import WebPImageFile

from seecoder.images.header import BadImage, check_size, unpack


def open_webp(data: bytes, max_pixels: int) -> WebPImageFile:
    """Open a WebP file, or the first frame of an animated one."""
    end = 8 + unpack("<I", data, 4)[0]
    if end > len(data):
        raise BadImage(f"the file is truncated: {len(data):,} of {end:,} bytes are there")
    check_size(*_size(data), max_pixels)
    return WebPImageFile(BytesIO(data))


def _size(data: bytes) -> tuple[int, int]:
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
