"""Healthy pictures of every format that is read, and ways of damaging them: what `fuzz_images.py` feeds on."""

import functools
import re
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from itertools import pairwise

import numpy as np
from PIL import Image, ImageCms

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIF")

# Values at which size arithmetic goes wrong.
BOUNDARIES = (0, 1, 2, 7, 8, *(2**bits + delta for bits in (7, 8, 15, 16, 31, 32) for delta in (-1, 0)))


# Healthy files to start from.


@functools.cache
def seeds(format: str) -> list[bytes]:
    """Small healthy files that between them use most of what the format has."""
    generator = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(40), np.arange(56))[..., None] * np.array([1.0, 2.0, 1.5])
    colour = Image.fromarray((smooth + generator.integers(0, 20, smooth.shape)).astype(np.uint8))
    grey, palette = colour.convert("L"), colour.convert("P", palette=Image.Palette.ADAPTIVE, colors=50)
    clear = colour.copy()
    clear.putalpha(grey)
    deep = Image.fromarray((smooth[..., 0] * 300).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    metadata = {"exif": exif, "icc_profile": icc}
    frames = {"save_all": True, "append_images": [clear.rotate(90)], "duration": 10}
    fax, packings = (
        ("group3", "group4", "tiff_ccitt"),
        ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd"),
    )
    variants: dict[str, list[tuple[Image.Image, dict]]] = {
        "JPEG": [
            (colour, metadata),
            (colour, {"progressive": True, "subsampling": 2}),
            (grey, {"optimize": True}),
            (colour.convert("CMYK"), {}),
            (colour, {"restart_marker_rows": 1}),
        ],
        "PNG": [
            (colour, metadata),
            (clear, {}),
            (palette, {"transparency": bytes(range(50))}),
            (deep, {"transparency": 600}),
            (palette.convert("1"), {"bits": 1}),
            (palette, {"bits": 4}),
            (clear, frames),
        ],
        "WEBP": [
            (colour, metadata),
            (colour, {"lossless": True}),
            (clear, {}),
            (clear, {"lossless": True, "exact": True}),
            (clear, frames),
        ],
        "TIFF": [
            *((colour, {"compression": name}) for name in packings),
            *((grey.convert("1"), {"compression": name}) for name in fax),
            *((image, {}) for image in (grey, palette, clear, deep, grey.convert("I"), grey.convert("F"))),
            (colour, metadata),
            (colour.convert("CMYK"), {}),
        ],
        "BMP": [(image, {}) for image in (colour, grey, palette, clear, grey.convert("1"))],
        "GIF": [
            (palette, {}),
            (grey, {"interlace": 1}),
            (palette, {"transparency": 3, "comment": b"a comment"}),
            (palette, frames),
        ],
        "AVIF": [(colour, metadata), (grey, {}), (clear, {"quality": 100, "subsampling": "4:4:4"}), (clear, frames)],
        "HEIF": [
            (colour, metadata),
            (grey, {}),
            (clear, {"quality": -1}),
            (colour, {"tile_size": 32}),
            (clear, frames),
        ],
    }
    if format == "HEIF":
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return [_encoded(image, format, options) for image, options in variants[format]] + [_run_length_bmp()] * (
        format == "BMP"
    )


def _encoded(image: Image.Image, format: str, options: dict) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def _run_length_bmp() -> bytes:
    """BMP with 8-bit run lengths, which Pillow reads but does not write."""
    rows = b"".join(bytes([20, row, 12, 255 - row, 0, 0]) for row in range(24)) + b"\0\1"
    colours = b"".join(bytes([level, 255 - level, level // 2, 0]) for level in range(256))
    info = struct.pack("<IiiHHIIiiII", 40, 32, 24, 1, 8, 1, len(rows), 2835, 2835, 256, 0)
    return struct.pack("<2sIHHI", b"BM", 54 + 1024 + len(rows), 0, 0, 54 + 1024) + info + colours + rows


# Damage.


def make_case(format: str, seed: int, case: int) -> bytes:
    """The file of one case: a healthy one after one to four kinds of damage."""
    generator = np.random.default_rng([seed, FORMATS.index(format), case])
    healthy = seeds(format)
    data = healthy[generator.integers(len(healthy))]
    for _ in range(generator.integers(1, 5)):
        damage = DAMAGES[generator.integers(len(DAMAGES))]
        data = damage(data, format, generator)
    # With wrong checksums nothing of a PNG is looked at; most cases should get past that.
    return repair_checksums(data) if format == "PNG" and generator.random() < 0.8 else data


def flip_bytes(data: bytes, format: str, generator: np.random.Generator) -> bytes:
    """Change up to eight bytes anywhere."""
    changed = bytearray(data)
    for _ in range(generator.integers(1, 9)):
        if changed:
            changed[generator.integers(len(changed))] ^= int(generator.integers(1, 256))
    return bytes(changed)


def truncate(data: bytes, format: str, generator: np.random.Generator) -> bytes:
    """Lose the tail, or just the last few bytes."""
    if generator.random() < 0.5:
        return data[: generator.integers(0, len(data) + 1)]
    return data[: max(0, len(data) - generator.integers(9))]


def splice(data: bytes, format: str, generator: np.random.Generator) -> bytes:
    """Go on with the tail of another file, sometimes of another format."""
    other = seeds(format if generator.random() < 0.7 else FORMATS[generator.integers(len(FORMATS))])
    tail = other[generator.integers(len(other))]
    return data[: generator.integers(0, len(data) + 1)] + tail[generator.integers(0, len(tail) + 1) :]


def edit_header(data: bytes, format: str, generator: np.random.Generator) -> bytes:
    """Put a boundary value of one, two or four bytes somewhere into the first 160 bytes."""
    width = int(generator.choice([1, 2, 4]))
    position = int(generator.integers(0, max(1, min(160, len(data) - width))))
    value = BOUNDARIES[generator.integers(len(BOUNDARIES))] % 256**width
    order = "little" if generator.random() < 0.5 else "big"
    return data[:position] + value.to_bytes(width, order) + data[position + width :]


def edit_size(data: bytes, format: str, generator: np.random.Generator) -> bytes:
    """Announce another width or height."""
    fields = size_fields(data, format)
    if not fields:
        return data
    position, layout = fields[generator.integers(len(fields))]
    if position + struct.calcsize(layout) > len(data):
        return data
    bits = 8 * struct.calcsize(layout)
    if generator.random() < 0.5:
        value = BOUNDARIES[generator.integers(len(BOUNDARIES))] % 2**bits
    else:
        value = int(2 ** (generator.random() * min(bits, 17)))  # plausible sizes, which get further
    return data[:position] + struct.pack(layout, value) + data[position + struct.calcsize(layout) :]


def duplicate_part(data: bytes, format: str, generator: np.random.Generator) -> bytes:
    """Repeat a chunk, segment or block, up to a few hundred times."""
    parts = split(data, format)
    place = int(generator.integers(len(parts)))
    times = int(2 ** (generator.random() * 9)) if len(parts[place]) < 2000 else 2
    return b"".join([*parts[:place], parts[place] * times, *parts[place:]])


def drop_part(data: bytes, format: str, generator: np.random.Generator) -> bytes:
    """Lose a chunk, segment or block."""
    parts = split(data, format)
    place = int(generator.integers(len(parts)))
    return b"".join(parts[:place] + parts[place + 1 :])


def swap_parts(data: bytes, format: str, generator: np.random.Generator) -> bytes:
    """Exchange two chunks, segments or blocks."""
    parts = split(data, format)
    one, other = generator.integers(len(parts), size=2)
    parts[one], parts[other] = parts[other], parts[one]
    return b"".join(parts)


DAMAGES: tuple[Callable[[bytes, str, np.random.Generator], bytes], ...] = (
    *(flip_bytes, flip_bytes, edit_header, edit_header, edit_size, edit_size),
    *(truncate, splice, duplicate_part, drop_part, swap_parts),
)


def size_fields(data: bytes, format: str) -> list[tuple[int, str]]:
    """Where the file says how large it is, and as what kind of number."""
    if format == "PNG":
        return [(16, ">I"), (20, ">I")] if len(data) > 24 else []
    if format == "BMP":
        return [(18, "<I"), (22, "<I"), (10, "<I"), (28, "<H"), (30, "<I"), (46, "<I")] if len(data) > 50 else []
    if format == "GIF":
        frame = data.find(b",", 13)
        inner = [(frame + 1 + 2 * place, "<H") for place in range(4)] if 0 < frame < len(data) - 10 else []
        return [(6, "<H"), (8, "<H"), *inner] if len(data) > 10 else []
    if format == "JPEG":
        frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        return [(frame + 5, ">H"), (frame + 7, ">H")] if 0 < frame < len(data) - 9 else []
    if format == "WEBP":
        return [(4, "<I"), (16, "<I"), (24, "<H"), (26, "<H"), (27, "<H"), (21, "<H")] if len(data) > 30 else []
    if format in ("AVIF", "HEIF"):
        boxes = [found.end() for found in re.finditer(rb"ispe|tkhd|pixi|iloc|ipma|infe|stsz|stco|grid", data)]
        return [
            (at + offset, layout) for at in boxes for offset, layout in ((4, ">I"), (8, ">I"), (8, ">B"), (12, ">H"))
        ]
    order = "<" if data[:2] == b"II" else ">"
    start = struct.unpack_from(order + "I", data, 4)[0] if len(data) > 8 else 0
    entries = range(start + 2, min(start + 2 + 12 * 20, len(data) - 12), 12)
    return [(at + offset, order + "I") for at in entries for offset in (4, 8)]


def split(data: bytes, format: str) -> list[bytes]:
    """The file cut where its own structure has seams, as far as that can be followed; at random places otherwise."""
    cuts = [0]
    if format == "PNG":
        cuts += _follow(data, 8, lambda at: 12 + struct.unpack_from(">I", data, at)[0])
    elif format == "WEBP":
        cuts += _follow(data, 12, lambda at: 8 + -(-struct.unpack_from("<I", data, at + 4)[0] // 2) * 2)
    elif format == "JPEG":
        cuts += _follow(data, 2, lambda at: 2 + struct.unpack_from(">H", data, at + 2)[0])
    elif format in ("AVIF", "HEIF"):  # boxes in boxes, wherever a name looks like one
        cuts += [found.start() for found in re.finditer(rb"\0\0..[a-zA-Z][a-zA-Z0-9]{3}", data, re.DOTALL)]
    elif format == "TIFF" and len(data) > 8:
        cuts += _follow(data, struct.unpack_from("<I", data, 4)[0] + 2, lambda at: 12)[:20]
    elif format == "GIF":
        cuts += [13, *(found.start() for found in re.finditer(rb"!\xf9|!\xff|!\xfe|\x00,", data))]
    else:
        cuts += [14, 54]
    cuts = sorted({cut for cut in cuts if 0 <= cut < len(data)} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(cuts)] or [data]


def _follow(data: bytes, position: int, step: Callable[[int], int]) -> list[int]:
    cuts = []
    while 0 <= position < len(data) - 8 and len(cuts) < 200:
        cuts.append(position)
        position += max(1, step(position))
    return cuts


def repair_checksums(data: bytes) -> bytes:
    """Recompute the checksum of every PNG chunk that can be followed."""
    repaired, position = bytearray(data), 8
    while position + 12 <= len(repaired):
        end = position + 8 + struct.unpack_from(">I", repaired, position)[0]
        if end + 4 > len(repaired):
            break
        struct.pack_into(">I", repaired, end, zlib.crc32(repaired[position + 4 : end]))
        position = end + 4
    return bytes(repaired)
