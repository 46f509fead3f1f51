"""What `load_image` takes, what it refuses, and that it is the only door."""

import contextlib
import io
import logging
import os
import pickle
import re
import socket
import stat
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from seecoder.images import header
from seecoder.images.gate import ImageError, is_image_file, load_image
from tests.fixtures.images import UPRIGHT, assert_levels, bounded, encode, png, refuse, stored

ROOT = Path(__file__).resolve().parents[3]


FORMATS = ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIF"]


def test_every_kind_of_source_gives_the_same_pixels(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode(UPRIGHT, "PNG"))
    tensor = torch.from_numpy(UPRIGHT).permute(2, 0, 1)
    sources = [
        *(path, str(path), path.read_bytes(), bytearray(path.read_bytes()), memoryview(path.read_bytes())),
        *(Image.open(path), Image.fromarray(UPRIGHT), UPRIGHT, tensor),
        *(UPRIGHT.astype(np.uint16) * 257, UPRIGHT.astype(np.float64) / 255, tensor.double() / 255),
    ]
    for source in sources:
        assert_levels(load_image(source), UPRIGHT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_any_float_type_and_gradient(dtype):
    tensor = torch.rand(3, 4, 6, dtype=torch.float32).to(dtype).requires_grad_()
    assert torch.equal(load_image(tensor), tensor.detach().float())
    assert not load_image(tensor).requires_grad


def test_grey_arrays_become_three_equal_channels():
    for source in (UPRIGHT[..., 0], UPRIGHT[..., :1], torch.from_numpy(UPRIGHT[..., 0]), UPRIGHT[..., 0] / 255):
        assert_levels(load_image(source), np.repeat(UPRIGHT[..., :1], 3, axis=2))


def test_alpha_of_arrays_is_composited():
    colour, alpha = np.full((2, 2, 3), 100, np.uint8), np.array([[0, 255], [51, 102]], np.uint8)
    expected = 100 * (alpha / 255)[..., None] + 255 * (1 - alpha / 255)[..., None]
    assert_levels(load_image(np.dstack([colour, alpha])), np.repeat(expected, 3, axis=2))
    assert_levels(load_image(np.dstack([colour[..., 0], alpha])), np.repeat(expected, 3, axis=2))
    as_float = np.dstack([colour, alpha]) / 255
    assert_levels(load_image(torch.from_numpy(as_float).permute(2, 0, 1)), np.repeat(expected, 3, axis=2))


def test_result_shares_no_memory_with_its_source():
    array, tensor = np.zeros((4, 4, 3), np.float32), torch.zeros(3, 4, 4)
    load_image(array).fill_(1)
    load_image(tensor).fill_(1)
    assert not array.any()
    assert not tensor.any()


def test_readonly_and_byte_swapped_arrays():
    array = (UPRIGHT.astype(">u2") * 257).astype(">u2")
    array.flags.writeable = False
    assert_levels(load_image(array[::-1, ::-1]), UPRIGHT[::-1, ::-1])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (np.zeros((4, 4, 5), np.uint8), "tensors .* or"),
        (np.zeros((3, 8, 8), np.uint8), "tensors .* or"),
        (np.zeros((1, 4, 4, 3), np.uint8), "one picture"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((4, 4, 3), np.int64), "int64 is not understood"),
        (np.eye(4, dtype=np.uint8), "its values are 0 to 1, black in uint8; make bool or floats of them"),
        (torch.eye(4).byte(), "its values are 0 to 1, black in uint8"),
        (np.eye(4, dtype=np.uint16), "black in uint16"),
        (np.eye(4, dtype=">u2") * 255, "its values are 0 to 255, black in"),
        (np.array([[0.5, np.nan]]), "NaN"),
        (np.array([[0.5, np.inf]]), "infinite"),
        (np.array([[0.0, 255.0]]), "from 0 to 255"),
        (np.array([[-1.0, 1.0]]), "from -1 to 1"),
        (torch.zeros(1, 3, 4, 4), "one picture"),
        (torch.zeros(4, 4, 3), "from|channels|H"),
        (torch.full((3, 4, 4), float("nan")), "NaN"),
        (torch.zeros(3, 4, 4, dtype=torch.int32), "int32 is not understood"),
        (torch.zeros(3, 0, 4), "no pixels"),
    ],
)
def test_arrays_that_are_no_picture_are_refused(source, reason):
    if isinstance(source, torch.Tensor) and source.shape == (4, 4, 3):
        assert load_image(source).shape == (3, 4, 3)  # channels first: four channels, 4 x 3 pixels
        return
    with pytest.raises(ImageError, match=reason):
        load_image(source)


def test_rounding_noise_around_the_range_is_clamped():
    assert load_image(np.array([[-1e-5, 1 + 1e-5]])).tolist()[0] == [[0.0, 1.0]]


def test_other_types_and_settings_are_refused():
    with pytest.raises(TypeError, match="`source` is a int"):
        load_image(3)  # pyright: ignore
    with pytest.raises(ValueError, match="max_pixels"):
        load_image(UPRIGHT, max_pixels=0)
    for background in [(0, 0), (0, 0, 256), (-1, 0, 0)]:
        with pytest.raises(ValueError, match="background"):
            load_image(UPRIGHT, background=background)  # pyright: ignore


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_exif_orientation(format, orientation):
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(format, {})
    exif = Image.Exif()
    exif[0x010F] = "a maker, so that the orientation is not the first entry"
    exif[0x0112] = orientation
    data = encode(stored(UPRIGHT, orientation), format, exif=exif, **options)
    pixels = load_image(data)
    assert pixels.shape == (3, 5, 7)
    assert_levels(pixels, UPRIGHT, tolerance=6 if format == "JPEG" else 1e-4)
    assert torch.equal(load_image(Image.open(io.BytesIO(data))), pixels), "a Pillow image of the same file"


def test_orientation_turns_alpha_with_the_colour():
    exif = Image.Exif()
    exif[0x0112] = 6
    rgba = np.dstack([UPRIGHT, np.arange(35, dtype=np.uint8).reshape(5, 7) * 7])
    turned = load_image(encode(stored(rgba, 6), "PNG", exif=exif))
    assert torch.equal(turned, load_image(encode(rgba, "PNG")))


def test_content_decides_and_not_the_name(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(encode(UPRIGHT, "PNG"))
    assert_levels(load_image(path), UPRIGHT)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"\n<!DOCTYPE html><html>404</html>", "web page"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "truncated"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"hello", r"b'hello'"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"GIF89a", "cannot be decoded"),
        (b"BM", "cannot be decoded"),
        (b"II*\0", "truncated"),
        (b"RIFF\xff\0\0\0WEBP", "truncated"),
    ],
)
def test_mislabelled_and_empty_files_name_path_and_reason(tmp_path, content, reason):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=reason) as caught:
        load_image(path)
    assert str(path) in str(caught.value)
    assert caught.value.source == str(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format", FORMATS)
def test_every_truncation_is_refused(format):
    data = encode(Image.fromarray(UPRIGHT).resize((24, 20)), format)
    # What follows the pixels of a GIF is the end of its codes and two closing bytes; losing these loses nothing.
    needed = len(data) - 4 if format == "GIF" else len(data)
    for length in range(len(data)):
        if length < needed:
            with pytest.raises(ImageError):
                load_image(data[:length])
        else:
            with contextlib.suppress(ImageError):
                assert torch.equal(load_image(data[:length]), load_image(data))


@pytest.mark.parametrize("format", FORMATS)
def test_truncation_is_refused_even_if_pillow_was_told_to_accept_it(format, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encode(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8), format)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(ImageError):
            load_image(data[: int(len(data) * share)])


def test_half_a_jpeg_says_truncated():
    data = encode(UPRIGHT, "JPEG")
    with pytest.raises(ImageError, match=r"[Tt]runcated"):
        load_image(data[: len(data) // 2])


def test_files_larger_than_any_picture_are_not_read(tmp_path):
    path = tmp_path / "sparse.png"
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        file.truncate(200 * 2**30)  # 200 GiB of nothing
    with bounded(), pytest.raises(ImageError, match="more than a picture"):
        load_image(path)


def test_missing_files_folders_and_addresses(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        load_image(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="a folder"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="not fetched"):
        load_image("https://example.com/a.png")
    for name in ("a\0b.png", "a" * 5000):
        with pytest.raises(ImageError):
            load_image(name)


def test_hostile_names_stay_on_one_short_line():
    with pytest.raises(ImageError) as caught:
        load_image("\x1b[31m\nfake log line" + "x" * 1000)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are POSIX")
@pytest.mark.timeout(10)
def test_pipes_sockets_and_devices_are_refused_at_once(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.chdir(tmp_path)  # names of sockets must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.png")
        for path in (tmp_path / "pipe.png", "s.png", "/dev/zero", "/dev/null"):
            assert not stat.S_ISREG(os.stat(path).st_mode)
            with pytest.raises(ImageError, match="not a regular file"):
                load_image(path)


def test_links_are_followed(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(UPRIGHT, "PNG"))
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    assert_levels(load_image(tmp_path / "b.png"), UPRIGHT)


@pytest.mark.parametrize("format", FORMATS)
def test_limit_is_on_pixels_and_inclusive(format):
    data = encode(Image.new("RGB", (10, 20)), format)
    assert load_image(data, max_pixels=200).shape == (3, 20, 10)
    with pytest.raises(ImageError, match=r"200 pixels \(10 x 20\); the limit is 199"):
        load_image(data, max_pixels=199)
    with pytest.raises(ImageError, match="the limit is 199"):
        load_image(Image.open(io.BytesIO(data)), max_pixels=199)


def test_what_is_in_memory_already_is_not_limited():
    for source in (Image.new("RGB", (10, 20)), np.zeros((20, 10), np.uint8), torch.zeros(3, 20, 10)):
        assert load_image(source, max_pixels=199).shape == (3, 20, 10)


@pytest.mark.parametrize("format", FORMATS)
def test_pillow_limit_neither_stops_nor_changes(format, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    data = encode(Image.new("RGB", (20, 20), "red"), format)
    assert load_image(data).shape == (3, 20, 20)
    assert Image.MAX_IMAGE_PIXELS == 50


def test_threads_do_not_disturb_each_other(monkeypatch):
    """Every reading of Pillow's limit during loads in several threads finds what was set."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    sources = [encode(Image.new("RGB", (20, 20), (level, 0, 0)), format) for level, format in enumerate(FORMATS)]
    wrong: list[object] = []

    def work(place: int) -> None:
        for _ in range(20):
            pixels = load_image(sources[place], max_pixels=400)
            if pixels.shape != (3, 20, 20) or Image.MAX_IMAGE_PIXELS != 50:
                wrong.append(pixels)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(sources))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("side", [10_000, 14_000])
def test_legal_pictures_beyond_pillows_warning_and_error(side):
    """100 and 196 megapixels; Pillow warns above 89 and refuses above 179. Warnings are errors in this suite."""
    for format in ("PNG", "TIFF", "GIF"):
        data = encode(Image.new("L", (side, side), 7), format)
        with pytest.raises(ImageError, match="the limit is 64,000,000"):
            load_image(data)
        assert load_image(data, max_pixels=200_000_000).shape == (3, side, side)


def test_images_opened_by_the_caller_may_only_be_of_listed_formats_unless_loaded():
    data = encode(Image.new("RGB", (8, 8), "red"), "TGA")
    with pytest.raises(ImageError, match="TGA files are not decoded"):
        load_image(Image.open(io.BytesIO(data)))
    loaded = Image.open(io.BytesIO(data))
    loaded.load()
    assert_levels(load_image(loaded), np.broadcast_to([255, 0, 0], (8, 8, 3)))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_animations_logged_once(format, caplog):
    header.warn_of_frames.cache_clear()
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    with caplog.at_level(logging.WARNING, logger="seecoder.images"):
        for _ in range(3):
            assert_levels(load_image(data), np.broadcast_to([255, 0, 0], (3, 4, 3)))
    assert caplog.text.count("several frames") == 1


def test_pillow_image_gives_its_current_frame():
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime")]
    image = Image.open(io.BytesIO(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    image.seek(1)
    assert_levels(load_image(image), np.broadcast_to([0, 255, 0], (3, 4, 3)))


def test_source_image_is_not_changed():
    image = Image.fromarray(np.dstack([UPRIGHT, UPRIGHT[..., 0]]))
    before = image.tobytes(), image.mode, dict(image.info)
    load_image(image)
    assert (image.tobytes(), image.mode, dict(image.info)) == before


def test_error_survives_pickling_and_data_loader_workers():
    error = ImageError("a.png", "it is empty")
    again = pickle.loads(pickle.dumps(error))
    assert (again.source, again.reason, str(again)) == ("a.png", "it is empty", "`a.png`: it is empty")
    assert isinstance(error, ValueError)
    wrapped = torch._utils.ExceptionWrapper((ImageError, error, None), where="in a worker")
    with pytest.raises(ImageError, match="it is empty"):
        wrapped.reraise()


OPENING = re.compile(
    r"\bImage\.open\b|from PIL\.Image import[^\n]*\bopen\b|\bread_image\b|\bdecode_(image|jpeg|png)\b|\bimread\b"
    r"|\bimageio\b|from diffusers[\w.]* import[^\n]*\bload_image\b|\bdiffusers[\w.]*\.load_image\b"
)


def test_this_is_the_only_door():
    """No other source file opens pictures by itself: what it got would be neither upright, nor bounded, nor safe."""
    offenders = []
    for folder in ("seecoder", "data", "train", "scripts"):
        for path in (ROOT / folder).rglob("*"):
            if not path.is_file() or path.suffix not in ("", ".py") or path.name.startswith("."):
                continue
            if path == ROOT / "data/shards/reading/levels.py":  # decodes what the door has opened and checked
                continue
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if OPENING.search(line.split("#")[0]):
                    offenders.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not offenders


@pytest.mark.parametrize(
    "line",
    [
        "with Image.open(path) as image:",
        "from diffusers.utils import load_image",
        "torchvision.io.read_image(path)",
        "cv2.imread(path)",
    ],
)
def test_the_search_for_other_doors_finds_them(line):
    assert OPENING.search(line)


@pytest.mark.parametrize("format", ["PPM", "TGA", "ICO", "PCX", "EPS", "JPEG2000", "PDF", "ICNS", "DDS", "SGI"])
def test_formats_off_the_list_are_refused(format):
    with pytest.raises(ImageError, match="JPEG, PNG, WEBP, TIFF, BMP, GIF, AVIF and HEIC are read"):
        load_image(encode(Image.new("RGB", (64, 64)), format))


def segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(payload)) + payload


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
        b"BM" + struct.pack("<IHHIIiiHHI", 0, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 8, 1) + bytes(20 + 1024),
    ],
)
def test_huge_canvases_are_refused_from_the_header(data):
    refuse(data, "the limit is 64,000,000|DecompressionBombError")


def test_files_are_told_by_how_they_begin(tmp_path):
    path = tmp_path / "file"
    for format in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"):
        path.write_bytes(encode(UPRIGHT, format)[:64])
        assert is_image_file(path)
    for head in (b"", b"# notes", encode(Image.new("RGB", (8, 8)), "PPM")):
        path.write_bytes(head)
        assert not is_image_file(path)


def test_files_are_told_by_their_first_bytes(tmp_path):
    (tmp_path / "picture.txt").write_bytes(encode(Image.fromarray(UPRIGHT), "PNG"))
    (tmp_path / "text.png").write_text("text")
    found = {path.name: is_image_file(path) for path in (*tmp_path.iterdir(), tmp_path, tmp_path / "none")}
    assert found == {"picture.txt": True, "text.png": False, tmp_path.name: False, "none": False}
