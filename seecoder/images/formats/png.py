"""PNG (W3C, third edition): texts and what else is not needed for pixels are left out before Pillow unpacks them."""

import zlib
from collections.abc import Iterator
from io import BytesIO

from PIL.PngImagePlugin import PngImageFile

from seecoder.images.header import MAX_PROFILE_BYTES, BadImage, check_size, unpack, warn_of_frames

_MAX_CHUNKS = 200_000  # of 8 KiB or more in honest files; Pillow takes two seconds for as many tiny ones


def open_png(data: bytes, max_pixels: int) -> PngImageFile:
    """Open a PNG file, or the default image of an animated one."""
    width, height, depth = unpack(">IIB", data, 16)
    check_size(width, height, max_pixels)
    kept, others = [data[:8]], dict.fromkeys((b"eXIf", b"iCCP", b"acTL"), b"")
    for kind, chunk in _chunks(data):
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(chunk)
        elif kind in others:
            others[kind] = chunk[8:-4]
    image = PngImageFile(BytesIO(b"".join(kept)))
    image.info |= {"exif": others[b"eXIf"], "icc_profile": _profile(others[b"iCCP"])}
    _correct_transparency(image, depth)
    if others[b"acTL"][:4] > b"\0\0\0\1":
        warn_of_frames()
    return image


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and bytes of every chunk up to the end of the image; optional ones with wrong checksums are left out."""
    view, position = memoryview(data), 8
    for _ in range(_MAX_CHUNKS):
        (length,) = unpack(">I", data, position)
        kind, end = data[position + 4 : position + 8], position + 8 + length
        if end + 4 > len(data):
            raise BadImage("the file is truncated: it ends inside a chunk")
        if zlib.crc32(view[position + 4 : end]) == unpack(">I", data, end)[0]:
            yield kind, data[position : end + 4]
        elif kind[:1].isupper():
            raise BadImage(f"the file is damaged: the checksum of chunk {kind!r} is wrong")
        if kind == b"IEND":
            return
        position = end + 4
    raise BadImage(f"the file is damaged: more than {_MAX_CHUNKS:,} chunks")


def _profile(payload: bytes) -> bytes | None:
    """The unpacked colour profile; None if it is damaged or larger than any in use."""
    _, _, compressed = payload.partition(b"\0")
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(compressed[1:], MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if inflate.eof else None


def _correct_transparency(image: PngImageFile, depth: int) -> None:
    """Bring the transparent colour into the range of 8 bits to which Pillow converts the pixels that it compares.

    For 16-bit RGB this makes all colours transparent that share their upper bytes with the one that is meant.
    """
    transparent = image.info.get("transparency")
    if image.mode == "L" and depth in (2, 4) and transparent is not None:
        image.info["transparency"] = (transparent & (2**depth - 1)) * 255 // (2**depth - 1)
    elif image.mode == "RGB" and depth == 16 and transparent is not None:
        image.info["transparency"] = tuple(level >> 8 for level in transparent)
