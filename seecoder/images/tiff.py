"""The first page of a TIFF file (TIFF 6.0, BigTIFF), with a directory rebuilt from checked entries.

A TIFF directory is a list of pointers into the file. Nothing in the format stops 65,535 entries from naming the same
20 MB, a strip list from covering the picture a thousand times, or a chain of directories from biting its own tail.
Readers that follow such pointers copy gigabytes. Here the directory is read once under bounds that every honest file
meets, and written anew at the end of the file with only the entries that decoding needs: Pillow and libtiff never see
the old one.
"""

import struct

import numpy as np

from seecoder.images.header import MAX_PROFILE_BYTES, BadImage, Header, unpack

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGER_TYPES = {1: "u1", 3: "u2", 4: "u4", 16: "u8"}  # BYTE, SHORT, LONG, LONG8

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES, _PLANAR = 273, 274, 277, 278, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325
_SAMPLE_FORMAT, _PROFILE = 339, 34675
# Besides those above: fill order, fax options, predictor, palette, ink set, extra samples, JPEG tables, YCbCr.
_NEEDED = {
    *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES),
    *(_PLANAR, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES, _SAMPLE_FORMAT),
    *(266, 292, 293, 317, 320, 332, 338, 347, 529, 530, 531, 532),
}

# Compressions by number: none, fax, LZW, JPEG, deflate, packbits, Zstandard. Left out are LZMA (its dictionary may
# claim gigabytes), WebP (not in Pillow's libtiff), the JPEG of 1992 and what nobody has written for decades.
_UNCOMPRESSED = 1
_COMPRESSIONS = {1, 2, 3, 4, 5, 7, 8, 32773, 32946, 50000}
_MAX_SAMPLES = 6
_MAX_BLOCKS = 131_072  # strips or tiles
_MAX_TILE = 2048  # a tile may be larger than the picture, but not without bound: decoders allocate it whole
_MAX_REREADING = 8  # how often the strips together may cover the file; honest strips do not overlap at all

_Entry = tuple[int, int, bytes]  # type, count, value


def read_tiff(data: bytes) -> Header:
    """Walk the first directory of a TIFF file.

    Raises:
        BadImage: If entries point outside the file, together claim more bytes than it has, or contradict each other.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = unpack(order + "H", data, 2)[0] == 43
    (start,) = unpack(order + ("Q" if big else "I"), data, 8 if big else 4)
    entries, following = _read_directory(data, order, start, big)
    width, height = _number(entries, order, _WIDTH), _number(entries, order, _HEIGHT)
    if width and height:
        _check_blocks(data, entries, order, width, height)
    profile = entries.get(_PROFILE, (7, 0, b""))[2]
    orientation = _number(entries, order, _ORIENTATION, 1)
    bits = _numbers(entries, order, _BITS, (1,))
    return Header(
        "TIFF",
        width,
        height,
        _with_directory(data, {tag: entries[tag] for tag in sorted(entries.keys() & _NEEDED)}, order, big),
        orientation if 1 <= orientation <= 8 else 1,
        profile if 0 < len(profile) <= MAX_PROFILE_BYTES else None,
        animated=following != 0,
        grey_levels=4095 if bits == (12,) else 65535,
        white_is_zero=_number(entries, order, _PHOTOMETRIC, 0) == 0,
        unsigned=_numbers(entries, order, _SAMPLE_FORMAT, (1,))[0] == 1,
    )


def _read_directory(data: bytes, order: str, start: int, big: bool) -> tuple[dict[int, _Entry], int]:
    """Entries by tag, the first of each, and where the next directory is (0: nowhere)."""
    counter, layout, stride, inline = ("Q", "HHQ", 20, 8) if big else ("H", "HHI", 12, 4)
    (count,) = unpack(order + counter, data, start)
    first = start + struct.calcsize("=" + counter)
    if count > 65535 or first + count * stride > len(data):
        raise BadImage("the file is truncated or damaged: its directory reaches past the end")
    entries: dict[int, _Entry] = {}
    claimed = 0
    for position in range(first, first + count * stride, stride):
        tag, kind, values = unpack(order + layout, data, position)
        if tag in entries or kind not in _TYPE_BYTES or tag not in _NEEDED | {_PROFILE, _ORIENTATION}:
            continue
        size = values * _TYPE_BYTES[kind]
        where = position + stride - inline
        if size > inline:
            (where,) = unpack(order + ("Q" if big else "I"), data, where)
            claimed += size
        if where + size > len(data) or claimed > len(data):
            raise BadImage(f"the file is truncated or damaged: entry {tag} claims {size:,} bytes that are not there")
        entries[tag] = (kind, values, data[where : where + size])
    end = first + count * stride
    following = 0 if end + inline > len(data) else unpack(order + ("Q" if big else "I"), data, end)[0]
    return entries, following


def _numbers(entries: dict[int, _Entry], order: str, tag: int, absent: tuple[int, ...] = ()) -> tuple[int, ...]:
    if tag not in entries:
        return absent
    kind, _, value = entries[tag]
    if kind not in _INTEGER_TYPES or not value:
        raise BadImage(f"the file is damaged: entry {tag} holds no integers")
    return tuple(np.frombuffer(value, np.dtype(order + _INTEGER_TYPES[kind])).tolist())


def _number(entries: dict[int, _Entry], order: str, tag: int, absent: int | None = None) -> int:
    if tag not in entries and absent is None:
        raise BadImage(f"the file is damaged: entry {tag} is missing")
    return _numbers(entries, order, tag, (absent or 0,))[0]


def _check_blocks(data: bytes, entries: dict[int, _Entry], order: str, width: int, height: int) -> None:
    """Check that strips or tiles cover the picture once, and cut lists that go on after that."""
    compression = _number(entries, order, _COMPRESSION, _UNCOMPRESSED)
    if compression not in _COMPRESSIONS:
        raise BadImage(f"TIFF compression {compression} is not read; save it as PNG, or as TIFF with deflate")
    samples = _number(entries, order, _SAMPLES, 1)
    if not 1 <= samples <= _MAX_SAMPLES:
        raise BadImage(f"the file has {samples} channels; 1 to {_MAX_SAMPLES} are read")
    block_width, block_height, tags = _block_size(entries, order, width, height)
    planes = samples if _number(entries, order, _PLANAR, 1) == 2 else 1
    blocks = planes * -(-width // block_width) * -(-height // block_height)
    if blocks > _MAX_BLOCKS:
        raise BadImage(f"the file is cut into {blocks:,} strips or tiles; {_MAX_BLOCKS:,} are the limit")
    for tag in tags:
        if tag in entries:
            kind, count, value = entries[tag]
            if count < blocks:
                raise BadImage(f"the file is damaged: {count:,} strips or tiles where the picture needs {blocks:,}")
            entries[tag] = (kind, blocks, value[: blocks * _TYPE_BYTES[kind]])
    offsets = np.array(_numbers(entries, order, tags[0]), dtype=np.float64)
    if compression == _UNCOMPRESSED:
        bits = _numbers(entries, order, _BITS, (1,))
        lengths = _uncompressed_lengths(block_width, block_height, height, samples // planes * bits[0], len(offsets))
    else:
        lengths = np.array(_numbers(entries, order, tags[1], (0,)), dtype=np.float64)
    if np.any(offsets + lengths > len(data)) or lengths.sum() > _MAX_REREADING * max(len(data), 1):
        raise BadImage("the file is truncated or damaged: strips or tiles reach past the end")


def _block_size(entries: dict[int, _Entry], order: str, width: int, height: int) -> tuple[int, int, tuple[int, int]]:
    """Width and height of a strip or tile, and the tags of its offsets and lengths."""
    if _TILE_OFFSETS in entries and _STRIP_OFFSETS not in entries:
        columns, rows = _number(entries, order, _TILE_WIDTH), _number(entries, order, _TILE_HEIGHT)
        if not 1 <= columns <= max(width + 15, _MAX_TILE) or not 1 <= rows <= max(height + 15, _MAX_TILE):
            raise BadImage(f"tiles of {columns:,} x {rows:,} do not suit a picture of {width:,} x {height:,} pixels")
        return columns, rows, (_TILE_OFFSETS, _TILE_BYTES)
    if _STRIP_OFFSETS not in entries:
        raise BadImage("the file is damaged: neither strips nor tiles")
    rows = min(_number(entries, order, _ROWS_PER_STRIP, height), height)
    if rows < 1:
        raise BadImage("the file is damaged: strips of no rows")
    return width, rows, (_STRIP_OFFSETS, _STRIP_BYTES)


def _uncompressed_lengths(width: int, rows: int, height: int, bits: int, count: int) -> np.ndarray:
    """Bytes of each uncompressed strip or tile; the last strip of a plane is shorter, tiles count as one row too."""
    down = -(-height // rows)
    present = np.minimum(rows, height - rows * (np.arange(count) % down)) if count == down else np.ones(count)
    return present * (-(-width * bits // 8))


def _with_directory(data: bytes, entries: dict[int, _Entry], order: str, big: bool) -> bytes:
    """The file with a new only directory at its end."""
    counter, layout, pointer, stride, inline = ("Q", "HHQ", "Q", 20, 8) if big else ("H", "HHI", "I", 12, 4)
    start = len(data) + -len(data) % 8
    values_at = start + struct.calcsize("=" + counter) + stride * len(entries) + inline
    directory, values = [struct.pack(order + counter, len(entries))], bytearray()
    for tag, (kind, count, value) in entries.items():
        if len(value) <= inline:
            field = value.ljust(inline, b"\0")
        else:
            field = struct.pack(order + pointer, values_at + len(values))
            values += value.ljust(len(value) + -len(value) % 8, b"\0")
        directory.append(struct.pack(order + layout, tag, kind, count) + field)
    if not big and values_at + len(values) >= 2**32:
        raise BadImage("the file is larger than 4 GiB, which only BigTIFF can be")
    head = data[:8] + struct.pack(order + "Q", start) if big else data[:4] + struct.pack(order + "I", start)
    padding = b"\0" * (start - len(data))
    return b"".join([head, data[len(head) :], padding, *directory, b"\0" * inline, values])
