"""WebP (RFC 9649): the size is read first, because Pillow allocates the canvas as soon as it opens the file."""

from io import BytesIO

from PIL.WebPImagePlugin import WebPImageFile

from seecoder.images.header import BadImage, OpenedImage, check_size, unpack


def open_webp(data: bytes, max_pixels: int) -> OpenedImage:
    """Open a WebP file, or the first frame of an animated one."""
    end = 8 + unpack("<I", data, 4)[0]
    if end > len(data):
        raise BadImage(f"the file is truncated: {len(data):,} of {end:,} bytes are there")
    check_size(*_size(data[12:16], data[20:30]), max_pixels)
    image = WebPImageFile(BytesIO(data))
    return OpenedImage(image, animated=image.is_animated)


def _size(kind: bytes, payload: bytes) -> tuple[int, int]:
    """Width and height from the first chunk: an extended, a lossy or a lossless file."""
    if kind == b"VP8X":
        low_width, high_width, low_height, high_height = unpack("<HBHB", payload, 4)
        return 1 + low_width + (high_width << 16), 1 + low_height + (high_height << 16)
    if kind == b"VP8 " and payload[3:6] == b"\x9d\x01\x2a":
        width, height = unpack("<HH", payload, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and payload[:1] == b"\x2f":
        (bits,) = unpack("<I", payload, 1)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    raise BadImage("the file is damaged: no WebP picture where it should begin")
