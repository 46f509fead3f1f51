"""A shard with every odd and every bad sample, through the real loader: what is used, as which pixels, and what not."""

import io
import json
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.shards.building.shard_build import write_shard
from data.shards.manifest import Manifest, write_manifest
from data.shards.reading.shard_reader import INCOMPLETE, NO_PICTURE
from data.shards.reading.square_image import SquareImage
from tests.fixtures.shards import AttributedSquare, make_loader

pytestmark = pytest.mark.filterwarnings("ignore:samples have png and jpg")  # said of one of them

SIDE = 16
WHITE = (255, 255, 255)
GOOD = 9


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    with io.BytesIO() as stream:
        image.save(stream, format, **options)
        return stream.getvalue()


def plain(colour: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (SIDE, SIDE), colour)


def halves(left: tuple[int, ...], right: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    """Two halves side by side."""
    image = plain(left, mode)
    image.paste(right, (SIDE // 2, 0, SIDE, SIDE))
    return image


def turned(format: str, **options: Any) -> bytes:
    """A picture by a camera that stood on its head: the file is red on the left and blue on the right."""
    exif = Image.Exif()
    exif[0x0112] = 3
    return saved(halves((255, 0, 0), (0, 0, 255)), format, exif=exif, **options)


def bomb() -> bytes:
    """A small PNG that says it has 99 million pixels."""
    head = struct.pack(">IIBBBBB", 11_000, 9_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return content


def palette(**options: Any) -> Image.Image:
    image = Image.new("P", (SIDE, SIDE), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.info.update(options)
    return image


def deep() -> Image.Image:
    """16-bit grey: levels 257 * 100 on the left, 257 * 200 on the right."""
    levels = np.full((SIDE, SIDE), 257 * 100, np.uint16)
    levels[:, SIDE // 2 :] = 257 * 200
    return Image.fromarray(levels)


FRAMES = {"save_all": True, "append_images": [plain((0, 0, 255))], "duration": 10}
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))

# Members, the colours of the left and the right half, and by how much they may be off.
Colours = tuple[tuple[int, int, int], tuple[int, int, int], int]
USED: dict[str, tuple[dict[str, bytes], Colours]] = {
    "CMYK JPEG": (
        {"jpg": saved(halves((0, 255, 255, 0), (255, 255, 0, 0), "CMYK"), "JPEG", quality=100, subsampling=0)},
        ((255, 0, 0), (0, 0, 255), 3),
    ),
    "one pixel": ({"png": saved(Image.new("RGB", (1, 1), (10, 20, 30)), "PNG")}, ((10, 20, 30), (10, 20, 30), 0)),
    "transparent PNG": (
        {"png": saved(halves((200, 0, 0, 0), (200, 0, 0, 51), "RGBA"), "PNG")},
        (WHITE, (244, 204, 204), 0),  # a fifth of the colour, on white
    ),
    "transparent palette PNG": ({"png": saved(palette(), "PNG", transparency=bytes([255, 0]))}, (WHITE, WHITE, 0)),
    "16-bit PNG": ({"png": saved(deep(), "PNG")}, ((100,) * 3, (200,) * 3, 0)),
    "palette PNG": ({"png": saved(palette(), "PNG")}, ((10, 200, 30), (10, 200, 30), 0)),
    "GIF under another name": ({"png": saved(palette(), "GIF")}, ((10, 200, 30), (10, 200, 30), 0)),
    "turned JPEG": ({"jpg": turned("JPEG", quality=100, subsampling=0)}, ((0, 0, 255), (255, 0, 0), 3)),
    "turned WebP": (
        {"webp": turned("WEBP", lossless=True)},
        ((0, 0, 255), (255, 0, 0), 0),
    ),
    "animated WebP": ({"webp": saved(plain((255, 0, 0)), "WEBP", lossless=True, **FRAMES)}, ((255, 0, 0),) * 2 + (0,)),
    "animated PNG": ({"png": saved(plain((255, 0, 0)), "PNG", **FRAMES)}, ((255, 0, 0),) * 2 + (0,)),
    "animated GIF": ({"jpg": saved(plain((255, 0, 0)), "GIF", **FRAMES)}, ((255, 0, 0),) * 2 + (0,)),
    "grey JPEG": ({"jpg": saved(Image.new("L", (SIDE, SIDE), 77), "JPEG", quality=100)}, ((77,) * 3, (77,) * 3, 1)),
    "two pictures": (
        {"jpg": saved(plain((0, 0, 255)), "JPEG"), "png": saved(plain((255, 0, 0)), "PNG")},
        ((255, 0, 0),) * 2 + (0,),
    ),
}

# Members, and the category under which the loss is counted.
SKIPPED: dict[str, tuple[dict[str, bytes], str]] = {
    "bomb": ({"png": bomb()}, "it has N pixels"),
    "junk": ({"jpg": bytes(range(256)) * 9}, "this is a file that begins with ..."),
    "other junk": ({"png": b"(';\"" * 99}, "this is a file that begins with ..."),
    "cut JPEG": ({"jpg": saved(NOISE, "JPEG", quality=95)[:-300]}, "the file is truncated"),
    "cut PNG": ({"png": saved(NOISE, "PNG")[:-300]}, "the file is truncated"),
    "zero bytes": ({"png": b""}, "the file is empty"),
    "a GIF's own name": ({"gif": saved(palette(), "GIF")}, NO_PICTURE),
    "no picture": ({"json": b"{}"}, NO_PICTURE),
    "bad JSON": ({"png": saved(plain((1, 2, 3)), "PNG"), "json": b"{"}, "bad json"),
}
# What depends on whether the manifest says that every sample has JSON: members, and the category with and without.
DEPENDS: dict[str, tuple[dict[str, bytes], str, str]] = {
    "text": ({"txt": b"a caption"}, INCOMPLETE, NO_PICTURE),
    "no JSON": ({"png": saved(plain((1, 2, 3)), "PNG")}, INCOMPLETE, ""),
}


def all_samples() -> list[tuple[str, dict[str, bytes]]]:
    """Good ones first and last and between: a bad one must not cost its neighbours."""
    good = [(f"good {number}", {"png": saved(plain((number, 0, 0)), "PNG")}) for number in range(GOOD)]
    odd = [(name, members) for group in (USED, SKIPPED) for name, (members, *_) in group.items()]
    pairs = [sample for pair in zip(good[:-1], odd, strict=False) for sample in pair]
    with_json = [(name, {"json": b"{}"} | members) for name, members in [*pairs, *odd[GOOD - 1 :], good[-1]]]
    return [*with_json[:-1], *((name, members) for name, (members, *_) in DEPENDS.items()), with_json[-1]]


@pytest.fixture(params=[True, False], ids=["json required", "picture required"])
def required(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def folder(tmp_path: Path, required: bool) -> Path:
    """Two shards, and a manifest that counts all."""
    folder = tmp_path / "shards"
    folder.mkdir()
    # Keys are numbers; names with spaces and dots would be no keys.
    samples = [(f"{number:03d}", members) for number, (_, members) in enumerate(all_samples())]
    half = len(samples) // 2
    parts = [write_shard(folder / f"{n}.tar", part) for n, part in enumerate((samples[:half], samples[half:]))]
    write_manifest(folder, Manifest(tuple(parts), ("json",) if required else ()))
    return folder


def losses(required: bool) -> dict[str, str]:
    """Category of every sample that must be skipped."""
    depends = {name: reasons[0 if required else 1] for name, (_, *reasons) in DEPENDS.items()}
    return {name: reason for name, (_, reason) in SKIPPED.items()} | {k: v for k, v in depends.items() if v}


@pytest.mark.filterwarnings("ignore:This process.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_is_used_or_skipped_for_its_reason_and_counters_are_exact(
    folder: Path, required: bool, num_workers: int, tmp_path: Path
):
    names = [name for name, _ in all_samples()]
    lost, total, half = losses(required), len(names), len(names) // 2
    assert total == len(set(names)) == GOOD + len(USED) + len(SKIPPED) + len(DEPENDS)
    own = make_loader(
        folder, AttributedSquare(SIDE), 4, rank=0, world_size=1, num_workers=num_workers,
        start_method="fork" if num_workers else None, batches=total, ceiling=1.0, report=tmp_path / "report.jsonl",
    )  # fmt: skip
    batches = list(own)  # as many batches of four as there are samples: four whole epochs
    own.close()
    assert {batch["pixels"].shape for batch in batches} == {(4, 3, SIDE, SIDE)}
    ids = torch.cat([batch["sample_id"] for batch in batches]).tolist()
    assert {names[number] for number in ids} == set(names) - set(lost)
    assert own.skips.seen == 4 * total == len(ids)
    assert own.skips.counts == {reason: 4 * count for reason, count in Counter(lost.values()).items()}
    places = [f"0.tar[{number}]" for number in range(half)] + [f"1.tar[{number}]" for number in range(total - half)]
    where = {name: str(folder / place) for name, place in zip(names, places, strict=True)}
    assert own.skips.names == {where[name]: reason for name, reason in lost.items()}
    report = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert sorted(row["name"] for row in report) == sorted(own.skips.names), "each once, in four epochs"
    assert all(row["detail"].isascii() and row["detail"].isprintable() for row in report)


def test_what_is_used_has_the_pixels_that_it_should_have(folder: Path):
    names = [name for name, _ in all_samples()]
    own = make_loader(
        folder, SquareImage(SIDE), 1, rank=0, world_size=1, shuffle=False, endless=False, ceiling=1.0
    )  # fmt: skip
    pixels = {names[int(batch["sample_id"])]: batch["pixels"][0].int() for batch in own if batch["valid"]}
    for name, (_, (left, right, tolerance)) in USED.items():
        for colour, part in ((left, pixels[name][..., : SIDE // 2]), (right, pixels[name][..., SIDE // 2 :])):
            off = (part - torch.tensor(colour)[:, None, None]).abs()
            assert off.max() <= tolerance, (name, off.max())
    for number in range(GOOD):
        assert pixels[f"good {number}"].unique().tolist() == sorted({0, number})


@pytest.mark.parametrize("orientation", range(1, 9))
def test_cameras_turn_pictures_and_they_are_turned_back(tmp_path: Path, orientation: int):
    # What file each camera would write of a scene that is red at its upper left and green at its lower right.
    scene = halves((0, 0, 0), (0, 0, 0))
    scene.paste((255, 0, 0), (0, 0, SIDE // 2, SIDE // 2))
    scene.paste((0, 255, 0), (SIDE // 2, SIDE // 2, SIDE, SIDE))
    turns: dict[int, list[Image.Transpose]] = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],  # the viewer turns it clockwise
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    file = scene
    for turn in turns.get(orientation, []):
        file = file.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(file, "JPEG", exif=exif, quality=100, subsampling=0)
    shard = write_shard(tmp_path / "0.tar", [("0", {"jpg": content})])
    write_manifest(tmp_path, Manifest((shard,)))
    (batch,) = make_loader(tmp_path, SquareImage(SIDE), 1, rank=0, world_size=1, batches=1)
    expected = torch.from_numpy(np.array(scene)).permute(2, 0, 1).int()
    assert (batch["pixels"][0].int() - expected).abs().max() <= 3
