"""GIF89a: the first frame alone goes to Pillow, as a file of its own without comments."""

import struct
from io import BytesIO

from PIL.GifImagePlugin import GifImageFile

from seecoder.images.header import BadImage, OpenedImage, check_size, unpack

_MAX_BLOCKS = 4_000_000  # of 255 bytes each; a file of tiny ones would take minutes


def open_gif(data: bytes, max_pixels: int) -> OpenedImage:
    """Open the first frame of a GIF file."""
    screen_width, screen_height, flags = unpack("<HHB", data, 6)
    start = 13 + _palette_bytes(flags)
    control, position = _find_frame(data, start)
    left, top, width, height, frame_flags = unpack("<HHHHB", data, position + 1)
    body = position + 10
    end = _end_of_blocks(data, body + _palette_bytes(frame_flags) + 1)
    canvas = (max(screen_width, left + width), max(screen_height, top + height))
    check_size(width, height, max_pixels)
    check_size(*canvas, max_pixels)
    head = data[:6] + struct.pack("<HH", width, height) + data[10:start]
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, frame_flags) + data[body:end]
    image = GifImageFile(BytesIO(head + control + frame + b";"))
    # Frames of an animation follow each other, with a control block before them or without.
    animated = data.startswith((b",", b"!\xf9\x04"), end)
    return OpenedImage(image, animated, None if canvas == (width, height) else (*canvas, left, top))


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _find_frame(data: bytes, position: int) -> tuple[bytes, int]:
    """The control block of the first frame, and where the frame begins."""
    control = b""
    for _ in range(_MAX_BLOCKS):
        (introducer,) = unpack("<B", data, position)
        if introducer == 0x2C:
            return control, position
        if introducer == 0x3B:
            raise BadImage("the file holds no picture")
        if introducer != 0x21:
            position += 1  # decoders, Pillow and browsers alike, skip stray bytes between blocks
            continue
        if data.startswith(b"\xf9\x04", position + 1):
            # The transparent index stays. How to dispose of the frame, and for how long it shows, do not matter here.
            packed, _, transparent, _ = unpack("<BHBB", data, position + 3)
            control = struct.pack("<BBBBHBB", 0x21, 0xF9, 4, packed & 1, 0, transparent, 0)
        position = _end_of_blocks(data, position + 2)
    raise BadImage(f"the file is damaged: more than {_MAX_BLOCKS:,} blocks before the picture")


def _end_of_blocks(data: bytes, position: int) -> int:
    for _ in range(_MAX_BLOCKS):
        (length,) = unpack("<B", data, position)
        position += 1 + length
        if length == 0:
            return position
    raise BadImage(f"the file is damaged: a frame of more than {_MAX_BLOCKS:,} blocks")
