"""Files made to be expensive: small on disk, huge in what they announce, repeat or point at."""

import contextlib
import io
import json
import resource
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seecoder.images import containers as _image_containers
from seecoder.images.containers import read_header
from seecoder.images.loading import ImageError, load_image

ROOT = Path(__file__).resolve().parents[3]
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))


def encode(format: str, image: Image.Image = PICTURE, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@contextlib.contextmanager
def bounded(seconds: float = 2.0, mib: int = 400) -> Iterator[None]:
    """Fail if the block takes more processor time, or reserves more memory, than that."""
    with contextlib.ExitStack() as stack:
        if sys.platform == "linux":
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            before = resource.getrlimit(resource.RLIMIT_AS)
            stack.callback(resource.setrlimit, resource.RLIMIT_AS, before)
            resource.setrlimit(resource.RLIMIT_AS, (used + mib * 2**20, before[1]))
        start = time.process_time()
        yield
        assert time.process_time() - start < seconds


def refuse(data: bytes, reason: str = ".") -> None:
    with bounded(), pytest.raises(ImageError, match=reason):
        load_image(data)


def chunk(kind: bytes, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def png(width: int, height: int, *chunks: bytes, rows: bytes | None = None) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = zlib.compress(bytes((width + 1) * height)) if rows is None else rows
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", rows) + chunk(b"IEND")


def segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(payload)) + payload


def tiff(entries: list[tuple[int, int, int, int]], body: bytes = b"") -> bytes:
    """Little-endian TIFF: eight bytes of header, `body`, the directory."""
    rows = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(entries)) + rows + b"\0" * 4


def grey_tiff(width: int = 4, height: int = 4, **changes: int) -> list[tuple[int, int, int, int]]:
    values = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: width * height}
    values |= {int(name[1:]): value for name, value in changes.items()}
    return [(tag, 4, 1, value) for tag, value in values.items() if value >= 0]


# Announced sizes (row 12): refused from the header, before anything of that size exists.


def gif(canvas: tuple[int, int], frame: tuple[int, int]) -> bytes:
    return (
        b"GIF89a" + struct.pack("<HHBBB", *canvas, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\2\0;"
    )


@pytest.mark.parametrize(
    "data",
    [
        png(20_000, 20_000, rows=b""),
        png(2**31 - 1, 2**31 - 1, rows=b""),
        b"\xff\xd8" + segment(0xC0, struct.pack(">BHHB", 8, 65535, 65535, 1) + b"\1\x11\0") + b"\xff\xda\0\2\xff\xd9",
        gif((65535, 65535), (1, 1)),
        gif((1, 1), (65535, 65535)),
        b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\2\0\0\0\xff\xff\xff\xff\xff\xff",
        b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\x00\xff\x3f\x00",
        b"RIFF\x12\0\0\0WEBPVP8L\x05\0\0\0\x2f\xff\xff\xff\x0f\0",
        b"BM" + struct.pack("<IHHIIiiHHI", 0, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 8, 1) + bytes(20),
    ],
)
def test_huge_canvases_are_refused_from_the_header(data):
    refuse(data, "the limit is 64,000,000|takes too long")


def test_huge_tiff_is_refused_from_the_header():
    refuse(tiff(grey_tiff(100_000, 100_000, t279=10, t278=100_000, t259=5), bytes(10)), "the limit is 64,000,000")


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (0, 0)])
def test_sizes_of_zero_are_refused(width, height):
    refuse(png(width, height), "no pixels")
    refuse(tiff(grey_tiff(width, height), bytes(16)), "no pixels|damaged")
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    refuse(struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54) + info, "no pixels")
    refuse(gif((width, height), (width, height)), "no pixels")


def test_negative_width_of_a_bmp_is_refused():
    info = struct.pack("<IiiHHIIiiII", 40, -8, 8, 1, 24, 0, 0, 0, 0, 0, 0)
    refuse(struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54) + info + bytes(1000), "no pixels")


def test_files_larger_than_any_picture_are_not_read(tmp_path):
    path = tmp_path / "sparse.png"
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        file.truncate(200 * 2**30)  # 200 GiB of nothing
    with bounded(), pytest.raises(ImageError, match="more than a picture"):
        load_image(path)


# Metadata: never worth more than the picture.


BOMB = zlib.compress(bytes(150_000_000), 1)


def test_text_that_unpacks_to_much_is_not_unpacked():
    texts = [chunk(b"zTXt", b"a\0\0" + BOMB), chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB)]
    with bounded(mib=100):
        assert load_image(png(4, 4, *texts * 3)).shape == (3, 4, 4)


def test_profile_that_unpacks_to_much_is_passed_over():
    with bounded(mib=100):
        assert load_image(png(4, 4, chunk(b"iCCP", b"a\0\0" + BOMB))).shape == (3, 4, 4)


def exif_bomb(order: str = "<") -> bytes:
    """5,000 entries in 64 KB, each of which claims 60 KB."""
    rows = b"".join(struct.pack(order + "HHII", 0x9000 + place % 5000, 7, 60_000, 8) for place in range(5000))
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "IH", 8, 5000) + rows


def test_exif_with_thousands_of_huge_entries():
    # Without density in its JFIF header Pillow looks for one in EXIF, and would copy 300 MB.
    jpeg = encode("JPEG")
    with bounded(mib=200):
        header = segment(0xE1, b"Exif\0\0" + exif_bomb())
        assert load_image(jpeg[:2] + header + jpeg[20:]).shape == (3, 24, 32)
        assert load_image(png(4, 4, chunk(b"eXIf", exif_bomb(">")))).shape == (3, 4, 4)
        assert load_image(jpeg[:2] + header * 200 + jpeg[20:]).shape == (3, 24, 32)


def test_picture_cut_into_very_many_empty_chunks():
    whole = png(4, 4)
    with bounded():
        assert load_image(whole[:33] + chunk(b"IDAT") * 50_000 + whole[33:]).shape == (3, 4, 4)


def test_files_of_nothing_but_tiny_parts_are_given_up(monkeypatch):
    """The true limit is a million; that many take about two seconds."""
    monkeypatch.setattr(_image_containers, "_MAX_PARTS", 1000)
    whole = png(4, 4)
    refuse(whole[:33] + chunk(b"tEXt") * 1001 + whole[33:], "more than 1,000 chunks")
    refuse(b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0, 0, 0) + b"!\xfe\0" * 1001, "more than 1,000 blocks")
    body = b"WEBP" + b"VP8X\x0a\0\0\0" + bytes(10) + b"junk\0\0\0\0" * 1001
    refuse(b"RIFF" + struct.pack("<I", len(body)) + body, "more than 1,000 chunks")
    monkeypatch.setattr(_image_containers, "_MAX_GIF_BLOCKS", 1000)
    head = b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, 4, 4, 0) + b"\2"
    refuse(head + b"\1\0" * 1001 + b"\0;", "too many blocks")


def test_reduced_files_hold_no_metadata():
    secret = b"a secret in the metadata"
    exif = Image.Exif()
    exif[0x010E] = secret.decode()
    files = [
        encode("JPEG", exif=exif, comment=secret),
        encode("PNG", exif=exif),
        png(4, 4, chunk(b"tEXt", secret)),
        encode("WEBP", exif=exif, xmp=secret),
        encode("GIF", comment=secret),
    ]
    for data in files:
        assert secret in data
        assert secret not in read_header(data).reduced


def test_trailing_data_are_cut_off():
    for format in ("JPEG", "PNG", "WEBP", "GIF"):
        data = encode(format)
        assert read_header(data + b"\xff\xda\xff\xd8 trailing" * 1000).reduced == read_header(data).reduced


# JPEG.


def test_jpeg_with_thousands_of_scans_is_refused():
    data = encode("JPEG", progressive=True)
    scan = data.index(b"\xff\xda")
    end = data.index(b"\xff", scan + 2 + data[scan + 3])
    refuse(data[:scan] + data[scan:end] * 5000 + data[end:], "more than 100 scans")


def test_jpeg_with_two_frames_is_refused():
    data = encode("JPEG")
    frame = data.index(b"\xff\xc0")
    larger = segment(0xC0, struct.pack(">BHHB", 8, 9000, 9000, 3) + b"\1\x11\0\2\x11\0\3\x11\0")
    refuse(data[:frame] + larger + data[frame:], "two frame headers")


def test_jpeg_of_nothing_but_segments_is_refused():
    refuse(b"\xff\xd8" + segment(0xFE, b"") * 200_000, "more than 10,000 segments|truncated")


def test_jpeg_with_padding_and_junk_between_segments_is_read():
    data = encode("JPEG")
    junk = data[:2] + b"\xff\xff\xff" + data[3:20] + b"\0\1\2junk" + data[20:]
    np.testing.assert_array_equal(load_image(junk), load_image(data))


# PNG.


def test_png_with_a_wrong_checksum_is_refused():
    data = bytearray(encode("PNG"))
    data[data.index(b"IDAT") + 20] ^= 1
    refuse(bytes(data), "checksum of chunk b'IDAT'")


def test_png_with_a_damaged_text_is_read():
    data = bytearray(png(4, 4, chunk(b"tEXt", b"hello")))
    data[data.index(b"hello")] ^= 1
    assert load_image(bytes(data)).shape == (3, 4, 4)


@pytest.mark.parametrize(
    "data",
    [
        png(4, 4)[:8] + png(4, 4)[33:],
        png(4, 4, rows=b""),
        png(4, 4, rows=b"no zlib at all"),
        png(4, 4)[:8] + chunk(b"IHDR", b"\0\0\0\4") + png(4, 4)[33:],
        png(4, 4)[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 3, 7, 0, 0, 0)) + png(4, 4)[33:],
        png(4, 4)[:33] + chunk(b"IEND"),
    ],
)
def test_png_without_its_parts_is_refused(data):
    refuse(data)


# TIFF: pointers.


def test_tiff_whose_entries_all_name_the_same_megabytes():
    body = bytes(4_000_000)
    rows = [(tag, 7, len(body), 8) for tag in range(32768, 65000) if tag != 34675]
    with bounded():
        assert load_image(tiff(grey_tiff() + rows, body)).shape == (3, 4, 4), "unknown entries are not followed"
    needed = [(tag, 7, len(body), 8) for tag in (266, 292, 293, 317, 320, 332, 338, 347)]
    refuse(tiff(grey_tiff() + needed, body), "claims")


def test_tiff_directories_in_a_circle():
    data = bytearray(tiff(grey_tiff(), bytes(16)))
    data[-4:] = struct.pack("<I", 24)  # the next directory is this one
    with bounded():
        assert load_image(bytes(data)).shape == (3, 4, 4)


def test_tiff_strips_that_cover_the_picture_over_and_over():
    """Strip lists longer than the picture are cut; strips of one compressed stream each are refused by their sum."""
    offsets = struct.pack("<100000I", *[8] * 100_000)
    entries = [entry for entry in grey_tiff(4000, 4000, t278=3999) if entry[0] not in (273, 279)]
    body = bytes(16_000_000)
    with bounded():
        assert load_image(tiff([*entries, (273, 4, 100_000, 8 + len(body))], body + offsets)).shape == (3, 4000, 4000)
    lengths = struct.pack("<4000I", *[1_000_000] * 4000)
    rows = [entry for entry in grey_tiff(4, 4000, t278=1, t259=5) if entry[0] not in (273, 279)]
    lists = [(273, 4, 4000, 8), (279, 4, 4000, 8 + 16_000)]
    refuse(tiff([*rows, *lists], struct.pack("<4000I", *[8] * 4000) + lengths + bytes(1_000_000)), "past the end")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"t273": 4_000_000_000}, "past the end"),
        ({"t273": -1}, "neither strips nor tiles"),
        ({"t256": -1}, "entry 256 is missing"),
        ({"t277": 60_000}, "60000 channels"),
        ({"t278": 0}, "no rows"),
        ({"t259": 34925}, "compression 34925 is not read"),
        ({"t259": 65_000}, "compression 65000 is not read"),
        ({"t258": 77}, "past the end|decoded"),
        ({"t273": -1, "t324": 8, "t322": 1_000_000, "t323": 1_000_000}, "tiles of"),
        ({"t273": -1, "t324": 8, "t322": 0, "t323": 16}, "tiles of"),
        ({"t278": 2}, "strips or tiles where the picture needs 2"),
    ],
)
def test_tiff_entries_that_contradict_each_other(changes, reason):
    refuse(tiff(grey_tiff(**changes), bytes(16)), reason)


def test_tiff_in_too_many_strips():
    rows = [entry for entry in grey_tiff(1, 200_000, t278=1) if entry[0] not in (273, 279)]
    body = struct.pack("<200000I", *[8] * 200_000)
    refuse(tiff([*rows, (273, 4, 200_000, 8)], body), "strips or tiles; 131,072 are the limit")


def test_tiff_directory_outside_the_file():
    refuse(b"II*\0" + struct.pack("<I", 10**9), "truncated")
    refuse(b"MM\0+" + struct.pack(">HHQ", 8, 0, 2**63), "truncated")


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "LA"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd"])
def test_rebuilt_directories_decode_to_the_same_pixels(mode, compression, big):
    data = encode("TIFF", PICTURE.convert(mode), compression=compression, big_tiff=big)
    with Image.open(io.BytesIO(data)) as plain, Image.open(io.BytesIO(read_header(data).reduced)) as reduced:
        assert plain.mode == reduced.mode
        assert plain.tobytes() == reduced.tobytes()
        assert reduced.n_frames == 1


# BMP.


def bmp(width: int, height: int, compression: int, body: bytes, colours: int = 256) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, len(body), 0, 0, colours, 0)
    start = 54 + 4 * 256
    return struct.pack("<2sIHHI", b"BM", start + len(body), 0, 0, start) + info + bytes(range(256)) * 4 + body


def test_bmp_whose_jumps_allocate_gigabytes():
    refuse(bmp(60_000_000, 1, 1, b"\0\2\xff\xff" * 10), "takes too long")
    with bounded(seconds=4), contextlib.suppress(ImageError):
        load_image(bmp(65_535, 50, 1, b"\0\2\xff\xff" * 1000))


def test_bmp_run_lengths_within_time():
    with bounded(seconds=4), contextlib.suppress(ImageError):
        load_image(bmp(1000, 1000, 1, b"\1\1\0\0" * 1000))


def test_bmp_with_rows_missing():
    refuse(bmp(100, 100, 0, bytes(9999)), "rows are missing")


# GIF and WebP.


def test_gif_frame_beyond_the_canvas_grows_it_within_the_limit():
    data = bytearray(encode("GIF"))
    struct.pack_into("<HH", data, 6, 1, 1)
    assert load_image(bytes(data)).shape == (3, 24, 32)


def test_webp_chunks_past_the_end():
    data = bytearray(encode("WEBP"))
    struct.pack_into("<I", data, 16, 2**31)
    refuse(bytes(data), "past the end")


# Damage at random; the long run is `tests/fuzzing/fuzz_images.py`.


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_AS"), reason="needs limits on the address space")
def test_a_thousand_damaged_files_give_a_picture_or_an_image_error():
    command = [sys.executable, str(ROOT / "scripts" / "fuzz_images"), "--count", "170", "--seed", "1", "--json"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    figures = json.loads(finished.stdout)
    assert not figures["findings"], finished.stderr
    assert finished.returncode == 0
    for row in figures["rows"]:
        assert row["pictures"] + row["image_errors"] == row["files"] == 170
        assert row["pictures"] >= 10, "damage so heavy that nothing is decoded tests nothing"
        assert row["peak_mib"] < 1500
