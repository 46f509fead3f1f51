"""Mutated tar files, manifests, indices and members through the real loader: bad samples or one clear line at worst."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.shards.building.shard_build import write_shard
from data.shards.caching.cache_source import WithCaches
from data.shards.caching.moments import MomentsSource
from data.shards.index import index_path
from data.shards.manifest import MANIFEST, Manifest, write_manifest
from data.shards.reading.square_image import SquareImage
from seecoder.weights.safetensors_files import WeightsError
from tests.fixtures.shards import make_loader

COUNTS = [4, 5, 6]
TOTAL = sum(COUNTS)
VICTIM = range(4, 9)
BLOCK = 512
SOURCE = MomentsSource(autoencoder="a" * 64, shape=(4, 2, 2), dtype="float32", size=8)
VALUES: list[Any] = [
    *(0, 1, -1, 2**31, 2**63, 10**30, 1.5, float("inf"), float("nan"), True, None),
    *("", "0", "a\nb", "\ud800", "../x.tar", "00001.tar", [], {}, [1], {"a": 1}),
]


@pytest.fixture
def files(tmp_path: Path, make_picture: Callable[..., bytes]) -> dict[str, bytes]:
    """A folder of shards with latent moments, as bytes."""
    folder = tmp_path / "healthy"
    folder.mkdir()

    def sample(number: int) -> tuple[str, dict[str, bytes]]:
        moments = {name: torch.full(SOURCE.shape, float(number), dtype=torch.half) for name in ("mean", "std")}
        about = json.dumps({"number": number}).encode()
        return f"{number:06d}", {
            "png": make_picture(number),
            "json": about,
            SOURCE.member(): SOURCE.pack(moments),
        }

    starts = [sum(COUNTS[:shard]) for shard in range(3)]
    shards = [
        write_shard(folder / f"{shard:05d}.tar", map(sample, range(start, start + COUNTS[shard])))
        for shard, start in enumerate(starts)
    ]
    write_manifest(folder, Manifest(tuple(shards), ("json", "png")))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def mutate_bytes(data: bytes, generator: random.Random) -> bytes:
    """One to six changes: bytes, a block lost, doubled, moved or wiped, the tail lost, rubbish put in."""
    changed = bytearray(data)
    for _ in range(generator.randint(1, 6)):
        if not changed:
            break
        at = generator.randrange(0, len(changed), BLOCK)
        kind = generator.randrange(7)
        if kind == 0:
            changed[generator.randrange(len(changed))] = generator.randrange(256)
        elif kind == 1:
            del changed[generator.randrange(len(changed)) :]
        elif kind == 2:
            del changed[at : at + BLOCK]
        elif kind == 3:
            other = generator.randrange(0, len(changed), BLOCK)
            changed[at:at] = changed[other : other + BLOCK]
        elif kind == 4:
            changed[at : at + BLOCK] = generator.choice([b"\0", b"\xff", b"0"]) * BLOCK
        elif kind == 5:
            changed[at:at] = generator.randbytes(generator.randint(1, 600))
        else:
            edit_header(changed, generator)
    return bytes(changed)


def edit_header(data: bytearray, generator: random.Random) -> None:
    """Another size, kind or name for a member, with a checksum that is right."""
    heads = [at for at in range(0, len(data) - BLOCK, BLOCK) if data[at + 257 : at + 262] == b"ustar"]
    if not heads:
        return
    at = generator.choice(heads)
    sizes = [b"77777777777\0", b"00000000000\0", b"-0000000001\0", b"\xff" * 12, b"\x80" + b"\x7f" * 11, b" " * 12]
    names = [b"../../x.png", b".png", b"a", b"000001.png", b"\xff.png", b"a.\n.png", b"__x__/a.png", b"n" * 100]
    edits = [
        (124, generator.choice(sizes)),
        (156, generator.choice([b"1", b"2", b"5", b"6", b"L", b"K", b"x", b"g", b"S", b"Z"])),
        (0, generator.choice(names).ljust(100, b"\0")),
    ]
    offset, value = generator.choice(edits)
    data[at + offset : at + offset + len(value)] = value
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + BLOCK])


def mutate_json(data: bytes, generator: random.Random) -> bytes:
    """Up to three values replaced or removed, and totals that agree all the same where there are any."""
    content = json.loads(data)
    for _ in range(generator.randint(1, 3)):
        places = list(walk(content))
        if places:
            where, key = generator.choice(places)
            if generator.random() < 0.8:
                where[key] = copy.deepcopy(generator.choice(VALUES))
            else:
                del where[key]
    try:
        samples = sum(shard["samples"] for shard in content["shards"])
        content["totals"] = {"samples": samples, "shards": len(content["shards"])}
    except (KeyError, TypeError):
        pass  # no manifest, or none any more
    return json.dumps(content).encode()


def walk(content: Any):
    """Every place that holds a value: what contains it, and its key there."""
    keys = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in keys:
        yield content, key
        yield from walk(content[key])


def check_refusal(error: Exception, same_plan: bool, beginning: str = "") -> None:
    """One line, and only where other shards do not stay readable."""
    assert not same_plan
    assert str(error).startswith(beginning)
    assert str(error).isprintable()


def check(folder: Path, *, same_plan: bool, seed: int) -> None:
    """Read an epoch; nothing but the documented errors, and counters that equal the manifest less the loss."""
    try:
        own = make_loader(
            folder, WithCaches(SquareImage(8), (SOURCE,)), 1, rank=0, world_size=1, ceiling=1.0, window=2, seed=seed
        )
    except (ValueError, FileNotFoundError) as refused:
        check_refusal(refused, same_plan)
        return
    try:
        batches = list(own)
    except WeightsError:  # the digest of the moments was hit, which looks like those of another autoencoder
        return
    except RuntimeError as refused:
        check_refusal(refused, same_plan, "No readable sample")
        return
    finally:
        own.close()
    ids = {int(batch["sample_id"]) for batch in batches}
    assert len(batches) == own.skips.seen == len(own.plan)
    assert own.skips.skipped == len(own.plan) - len(ids)
    if same_plan:
        assert ids >= set(range(TOTAL)) - set(VICTIM), "neighbours are read"
        shown = {int(batch["sample_id"]): int(batch["pixels"][0, 0, 0, 0]) for batch in batches}
        assert all(shown[number] == number for number in ids - set(VICTIM))


@pytest.mark.parametrize("kind", ["tar", "tar with index", "tar alone", "manifest", "index", "statistics"])
def test_mutations_cost_samples_at_most(tmp_path: Path, files: dict[str, bytes], kind: str):
    index, victim = index_path(Path("00001.tar")).name, "00001.tar"
    for case in range(40):
        generator = random.Random(f"{kind} {case}")
        content = dict(files)
        if kind.startswith("tar"):
            content[victim] = mutate_bytes(content[victim], generator)
        if kind == "tar":
            del content[index]
        elif kind in ("tar alone", "statistics"):
            content = {name: data for name, data in content.items() if name.endswith(".tar")}
        if kind == "statistics":
            content["00001_stats.json"] = mutate_json(b'{"count": 6, "successes": 5}', generator)
        elif kind in ("manifest", "index"):
            name = MANIFEST if kind == "manifest" else index
            content[name] = mutate_json(content[name], generator)
        folder = tmp_path / str(case)
        folder.mkdir()
        for name, data in content.items():
            (folder / name).write_bytes(data)
        check(folder, same_plan=kind in ("tar", "tar with index", "index"), seed=case)


@pytest.mark.heavy
def test_mutated_members_cost_their_samples_at_most(
    tmp_path: Path, files: dict[str, bytes], make_picture: Callable[..., bytes]
):
    moments = {name: torch.zeros(SOURCE.shape, dtype=torch.half) for name in ("mean", "std")}
    healthy = {
        "png": make_picture(5),
        "json": b'{"number": 5}',
        SOURCE.member(): SOURCE.pack(moments),
    }
    for case in range(40):
        generator = random.Random(f"member {case}")
        samples = []
        for number in VICTIM:
            members = dict(healthy)
            kind = generator.choice(list(members))
            members[kind] = mutate_bytes(members[kind], generator)
            samples.append((f"{number:06d}", members))
        folder = tmp_path / str(case)
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        write_shard(folder / "00001.tar", samples)
        check(folder, same_plan=True, seed=case)
