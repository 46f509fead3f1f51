"""What a picture file says about itself, read without decoding it.

Pillow parses metadata eagerly, and some of that costs far more than the picture is worth: a WebP decoder allocates its
canvas before anybody can ask how large it is, every EXIF tag is copied whatever its size, a progressive JPEG may hold
thousands of scans. So each container is walked here first. `read_header` returns the size of the first picture, how to
turn it upright, its colour profile, and a *reduced* file that holds what a decoder needs and nothing else: no text, no
EXIF, no thumbnails, no further frames. Every walk is bounded by the length of the file.

Formats: JPEG (ITU-T T.81), PNG (W3C, third edition), WebP (RFC 9649), GIF89a, BMP. TIFF has a file of its own.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator

from seecoder.images.header import MAX_PROFILE_BYTES, BadImage, Header, orientation_from_exif, unpack
from seecoder.images.tiff import read_tiff

# Honest files stay far below these; without them a file made of tiny parts keeps the walk busy for minutes.
_MAX_PARTS = 1_000_000
_MAX_GIF_BLOCKS = 4_000_000  # of 255 bytes each
_MAX_JPEG_SEGMENTS = 10_000
_MAX_JPEG_SCANS = 100  # a scan of a progressive JPEG is a pass over the whole picture; encoders write about ten
_MAX_RLE_PIXELS = 16_000_000  # Pillow decodes run-length BMP in Python: a tenth of a microsecond a pixel
_MAX_RLE_WIDTH = 65_535  # ... in which one jump of four bytes allocates up to 255 rows at once

_JPEG_STANDALONE = {0x00, 0x01, *range(0xD0, 0xD9)}  # stuffed byte, TEM, RST0-7, SOI: no length follows
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_JPEG_TABLES = {0xC4, 0xCC, 0xDB, 0xDD}  # Huffman, arithmetic conditioning, quantisation, restart interval
_JPEG_SCAN_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)


def read_header(data: bytes) -> Header:
    """Walk the container of the first picture in `data`.

    Raises:
        BadImage: If the format is not one of the six, or the container is damaged or cut short.
    """
    for signature, reader in _READERS:
        if signature.match(data):
            return reader(data)
    raise BadImage(_what_it_is_instead(data))


def _what_it_is_instead(data: bytes) -> str:
    if not data:
        return "the file is empty"
    accepted = "JPEG, PNG, WEBP, TIFF, BMP and GIF are read"
    for signature, name in _KNOWN_OTHERS:
        if signature.match(data):
            return f"this is {name}, not a picture that can be read ({accepted})"
    return f"the first bytes, {data[:8]!r}, are those of no known picture format ({accepted})"


def _jpeg(data: bytes) -> Header:
    kept, frame, orientation, profile, position = [b"\xff\xd8"], b"", None, dict[int, bytes](), 2
    for _ in range(_MAX_JPEG_SEGMENTS):
        position = data.find(b"\xff", position)
        marker = data[position + 1] if 0 <= position < len(data) - 1 else 0xD9
        if marker == 0xD9:
            raise BadImage("the file is truncated: it ends before the picture begins")
        if marker in _JPEG_STANDALONE or marker == 0xFF:
            position += 1 if marker == 0xFF else 2
            continue
        if marker == 0xDA:
            break
        segment = _jpeg_segment(data, position)
        payload = segment[4:]
        if marker in _JPEG_FRAMES:
            if frame:
                raise BadImage("the file is damaged: it has two frame headers")
            frame = payload
        if marker in _JPEG_FRAMES or marker in _JPEG_TABLES or payload.startswith((b"JFIF\0", b"Adobe")):
            kept.append(segment)
        elif marker == 0xE1 and payload.startswith(b"Exif\0\0") and orientation is None:
            orientation = orientation_from_exif(payload)
        elif marker == 0xE2 and payload.startswith(b"ICC_PROFILE\0") and len(payload) > 14:
            profile[payload[12]] = payload[13:]
        position += len(segment)
    else:
        raise BadImage(f"the file is damaged: more than {_MAX_JPEG_SEGMENTS:,} segments before the picture")
    if len(frame) < 6:
        raise BadImage("the file is damaged: it has no frame header")
    height, width = unpack(">HH", frame, 1)
    kept.append(data[position : _jpeg_end(data, position)])
    return Header("JPEG", width, height, b"".join(kept), orientation or 1, _joined_profile(profile))


def _jpeg_segment(data: bytes, position: int) -> bytes:
    (length,) = unpack(">H", data, position + 2)
    segment = data[position : position + 2 + length]
    if length < 2 or len(segment) < 2 + length:
        raise BadImage("the file is truncated or damaged inside a segment")
    return segment


def _jpeg_end(data: bytes, position: int) -> int:
    """Where the end-of-image marker of the picture ends, whose first scan begins at `position`."""
    scans = 0
    for _ in range(_MAX_JPEG_SEGMENTS):
        found = _JPEG_SCAN_MARKER.search(data, position)
        if found is None:
            raise BadImage("the file is truncated: the end of the picture is missing")
        marker = data[found.start() + 1]
        if marker == 0xD9:
            return found.end()
        scans += marker == 0xDA
        if scans > _MAX_JPEG_SCANS:
            raise BadImage(f"the file has more than {_MAX_JPEG_SCANS} scans, made to keep a decoder busy")
        position = found.start() + (2 if marker in _JPEG_STANDALONE else len(_jpeg_segment(data, found.start())))
    raise BadImage(f"the file is damaged: more than {_MAX_JPEG_SEGMENTS:,} segments inside the picture")


def _joined_profile(parts: dict[int, bytes]) -> bytes | None:
    """The ICC profile from its numbered parts (ICC.1:2010, annex B.4); their first byte is how many there should be."""
    if not parts or sorted(parts) != list(range(1, next(iter(parts.values()))[0] + 1)):
        return None
    return b"".join(parts[number][1:] for number in sorted(parts))


def _png(data: bytes) -> Header:
    kept, pixels, exif, icc, animated = dict[bytes, bytes](), list[bytes](), b"", None, False
    for kind, payload, intact in _png_chunks(data):
        if kind == b"IEND":
            break
        if not intact and kind[0:1].isupper():
            raise BadImage(f"the file is damaged: the checksum of chunk {kind!r} is wrong")
        if not kept and kind != b"IHDR":
            raise BadImage("the file is damaged: it does not begin with its header")
        if kind == b"IDAT":
            pixels.append(payload)
        elif kind in (b"IHDR", b"PLTE", b"tRNS") and not pixels and kind not in kept and intact:
            kept[kind] = payload
        elif kind == b"eXIf" and intact:
            exif = payload
        elif kind == b"iCCP" and intact:
            icc = _png_profile(payload)
        elif kind == b"acTL" and intact and len(payload) >= 4:
            animated = unpack(">I", payload, 0)[0] > 1
    width, height, depth, colour = unpack(">IIBB", kept.get(b"IHDR", b""), 0)
    if b"tRNS" in kept:
        kept[b"tRNS"] = _png_transparency(kept[b"tRNS"], depth, colour)
    # One IDAT chunk instead of perhaps a million, so that the time no longer depends on how the data were cut up.
    chunks = [*kept.items(), (b"IDAT", b"".join(pixels)), (b"IEND", b"")]
    reduced = b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(kind, payload) for kind, payload in chunks)
    return Header("PNG", width, height, reduced, orientation_from_exif(exif), icc, animated)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    view, position = memoryview(data), 8
    for _ in range(_MAX_PARTS):
        (length,) = unpack(">I", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            raise BadImage("the file is truncated: it ends inside a chunk")
        intact = zlib.crc32(view[position + 4 : end]) == unpack(">I", data, end)[0]
        yield data[position + 4 : position + 8], data[position + 8 : end], intact
        position = end + 4
    raise BadImage(f"the file is damaged: more than {_MAX_PARTS:,} chunks")


def _png_chunk(kind: bytes, payload: bytes) -> bytes:
    checksum = zlib.crc32(payload, zlib.crc32(kind))
    return b"".join([struct.pack(">I", len(payload)), kind, payload, struct.pack(">I", checksum)])


def _png_profile(payload: bytes) -> bytes | None:
    _, _, compressed = payload.partition(b"\0")
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(compressed[1:], MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if inflate.eof else None


def _png_transparency(payload: bytes, depth: int, colour: int) -> bytes:
    """The transparent colour in the range in which Pillow compares it: after its own conversion to 8 bits.

    Pillow widens 2- and 4-bit grey to 8 bits and narrows 16-bit RGB to 8, but compares with the number in the file. For
    16-bit RGB this makes all colours transparent that share their upper bytes with the one that is meant.
    """
    if colour == 0 and depth in (2, 4):
        level = (unpack(">H", payload, 0)[0] & (2**depth - 1)) * 255 // (2**depth - 1)
        return struct.pack(">H", level)
    if colour == 2 and depth == 16:
        return struct.pack(">HHH", *(value >> 8 for value in unpack(">HHH", payload, 0)))
    return payload


def _webp(data: bytes) -> Header:
    chunks = list(_webp_chunks(data))
    found: dict[bytes, bytes] = {}
    for kind, payload in chunks:
        found.setdefault(kind, payload)
    icc = found.get(b"ICCP")
    exif = orientation_from_exif(found.get(b"EXIF", b""))
    if chunks[0][0] != b"VP8X":
        kind, payload = chunks[0]
        width, height = _webp_bitstream_size(kind, payload)
        return Header("WEBP", width, height, _webp_file([(kind, payload)]), exif, icc)
    flags, *_ = unpack("<B", found[b"VP8X"], 0)
    low_width, high_width, low_height, high_height = unpack("<HBHB", found[b"VP8X"], 4)
    width, height = 1 + low_width + (high_width << 16), 1 + low_height + (high_height << 16)
    kept = [(b"VP8X", bytes([flags & 0x12]) + found[b"VP8X"][1:])]  # only "has alpha" and "is animated" stay true
    kept += [(kind, found[kind]) for kind in (b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L") if kind in found]
    animated = sum(kind == b"ANMF" for kind, _ in chunks) > 1
    profile = icc if icc is None or len(icc) <= MAX_PROFILE_BYTES else None
    return Header("WEBP", width, height, _webp_file(kept), exif, profile, animated)


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    end, position = 8 + unpack("<I", data, 4)[0], 12
    if end > len(data):
        raise BadImage(f"the file is truncated: {len(data):,} of {end:,} bytes are there")
    for _ in range(_MAX_PARTS):
        if position + 8 > end and position > 12:
            return
        (length,) = unpack("<I", data, position + 4)
        if position + 8 + length > end:
            raise BadImage("the file is damaged: a chunk reaches past the end")
        yield data[position : position + 4], data[position + 8 : position + 8 + length]
        position += 8 + length + length % 2
    raise BadImage(f"the file is damaged: more than {_MAX_PARTS:,} chunks")


def _webp_bitstream_size(kind: bytes, payload: bytes) -> tuple[int, int]:
    if kind == b"VP8 " and payload[3:6] == b"\x9d\x01\x2a":
        width, height = unpack("<HH", payload, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and payload[:1] == b"\x2f":
        (bits,) = unpack("<I", payload, 1)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    raise BadImage("the file is damaged: no WebP picture where it should begin")


def _webp_file(chunks: list[tuple[bytes, bytes]]) -> bytes:
    padded = [(kind, len(payload), payload + b"\0" * (len(payload) % 2)) for kind, payload in chunks]
    body = b"".join(kind + struct.pack("<I", length) + payload for kind, length, payload in padded)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def _gif(data: bytes) -> Header:
    screen_width, screen_height, flags = unpack("<HHB", data, 6)
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    palette, control = data[13:position], b""
    for _ in range(_MAX_PARTS):
        (introducer,) = unpack("<B", data, position)
        if introducer == 0x2C:
            break
        if introducer == 0x3B:
            raise BadImage("the file holds no picture")
        if introducer != 0x21:
            position += 1  # decoders, Pillow and browsers alike, skip stray bytes between blocks
            continue
        if data[position + 1 : position + 3] == b"\xf9\x04":
            # The transparent index stays. How to dispose of the frame, and for how long it shows, do not matter here.
            packed, _, transparent, _ = unpack("<BHBB", data, position + 3)
            control = struct.pack("<BBBBHBB", 0x21, 0xF9, 4, packed & 1, 0, transparent, 0)
        position = _gif_blocks_end(data, position + 2)
    else:
        raise BadImage(f"the file is damaged: more than {_MAX_PARTS:,} blocks before the picture")
    left, top, width, height, frame_flags = unpack("<HHHHB", data, position + 1)
    pixels = position + 11 + (3 << (frame_flags & 7) + 1 if frame_flags & 0x80 else 0)
    end = _gif_blocks_end(data, pixels)
    full_width, full_height = max(screen_width, left + width), max(screen_height, top + height)
    if max(full_width, full_height) > 65535:
        raise BadImage("the file is damaged: its first frame lies outside of any GIF canvas")
    # A screen that the frame fits: otherwise Pillow grows the picture, and holds it against its own limit, not ours.
    head = data[:6] + struct.pack("<HH", full_width, full_height) + data[10:13]
    reduced = b"".join([head, palette, control, data[position:end], b"\x3b"])
    covered = (top, top + height, left, left + width)
    return Header(
        "GIF",
        full_width,
        full_height,
        reduced,
        animated=_gif_has_another_frame(data, end),
        covered=None if covered == (0, full_height, 0, full_width) else covered,
    )


def _gif_blocks_end(data: bytes, position: int) -> int:
    for _ in range(_MAX_GIF_BLOCKS):
        if position >= len(data):
            raise BadImage("the file is truncated: it ends inside a block")
        length = data[position]
        position += 1 + length
        if length == 0:
            return position
    raise BadImage("the file is damaged: too many blocks")


def _gif_has_another_frame(data: bytes, position: int) -> bool:
    """True if an image block follows; damage behind the first frame is not looked for."""
    try:
        for _ in range(1000):
            (introducer,) = unpack("<B", data, position)
            if introducer != 0x21:
                return introducer == 0x2C
            position = _gif_blocks_end(data, position + 2)
    except BadImage:
        return False
    return False


def _bmp(data: bytes) -> Header:
    (pixels_at, header_bytes) = unpack("<II", data, 10)
    if header_bytes == 12:
        width, height, _, bits = unpack("<HHHH", data, 18)
        compression = 0
    elif header_bytes in (40, 52, 56, 64, 108, 124):
        width, height, _, bits, compression = unpack("<iiHHI", data, 18)
    else:
        raise BadImage(f"the file is damaged: no BMP header has {header_bytes:,} bytes")
    height = abs(height)
    row_bytes = (width * bits + 31) // 32 * 4
    if compression not in (0, 1, 2, 3):
        raise BadImage(f"BMP compression {compression} is not read; save it as PNG")
    if compression in (1, 2) and (width > _MAX_RLE_WIDTH or width * height > _MAX_RLE_PIXELS):
        raise BadImage(f"a run-length coded BMP of {width:,} x {height:,} pixels takes too long; save it as PNG")
    if compression in (0, 3) and pixels_at + row_bytes * height > len(data):
        raise BadImage("the file is truncated: rows are missing")
    return Header("BMP", width, height, data)


_READERS: list[tuple[re.Pattern[bytes], Callable[[bytes], Header]]] = [
    (re.compile(rb"\xff\xd8\xff"), _jpeg),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), _png),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), _webp),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), read_tiff),
    (re.compile(rb"GIF8[79]a"), _gif),
    (re.compile(rb"BM"), _bmp),
]

_KNOWN_OTHERS: list[tuple[re.Pattern[bytes], str]] = [
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer (run `git lfs pull`)"),
    (re.compile(rb"(\xef\xbb\xbf)?\s*<"), "a web page or another text with tags (HTML, XML, SVG)"),
    (re.compile(rb"....ftyp", re.DOTALL), "an HEIC, AVIF or video file"),
    (re.compile(rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"%PDF|%!PS"), "PDF or PostScript"),
    (re.compile(rb"8BPS"), "a Photoshop document"),
    (re.compile(rb"PK\x03\x04"), "a zip archive"),
    (re.compile(rb"\x00\x00\x01\x00"), "an icon file"),
]
