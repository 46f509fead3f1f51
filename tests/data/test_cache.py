"""`python -m data.cache`: same samples in the same places, moments that are right, and killing it changes nothing."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from data import cache
from data.shards.building import shard_build
from data.shards.building.shard_build import write_shard
from data.shards.caching import cached_samples, moments
from data.shards.caching.cache_source import WithCaches
from data.shards.caching.moments import MomentsSource, encode_moments
from data.shards.manifest import Manifest, read_manifest, write_manifest
from data.shards.reading.shard_reader import ShardReader
from data.shards.reading.square_image import SquareImage
from data.shards.shard_set import open_shards
from seecoder.base_model.loading import load_frozen
from tests.fixtures.shards import make_loader

SIZE, MEMBER = 8, MomentsSource.member()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        norm_num_groups=2,
        mid_block_add_attention=False,
    )
    folder = tmp_path_factory.mktemp("base")
    vae.save_pretrained(folder / "vae")
    return folder


@pytest.fixture
def run(base: Path) -> Callable[..., int]:
    def run(shards: Path, out: Path, *more: str) -> int:
        fixed = ["--base", str(base), "--size", str(SIZE), "--batch-size", "4", "--device", "cpu"]
        return cache.main([str(shards), str(out), *fixed, *more])

    return run


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def members(folder: Path) -> Iterator[dict[str, bytes]]:
    shards = open_shards(folder)
    reader = ShardReader(shards, {"json", MEMBER})
    for shard, count in enumerate(shards.counts):
        for number in range(count):
            yield reader.read(shard, number)


def source(base: Path) -> tuple[Any, MomentsSource]:
    vae = load_frozen(str(base), "vae", "float32")
    return vae, MomentsSource.from_vae(vae, SIZE)


def test_every_sample_is_copied_and_gets_its_moments(base, run, make_shards, tmp_path, capsys):
    raw, out = make_shards([5, 3, 6]), tmp_path / "out"
    assert run(raw, out, "--flip") == 0
    output = capsys.readouterr().out
    assert "14 samples of 3 shards" in output
    assert "done: 14 samples in 3 shards" in output
    vae, about = source(base)
    for before, after in zip(members(raw), members(out), strict=True):
        content = after.pop(MEMBER)
        assert after == before
        digest, tensors = about.unpack(content)
        assert digest == about.digest
        pixels = SquareImage(SIZE)(before, 0, 0)["pixels"][None].float() / 255
        for prefix, picture in (("", pixels), ("flipped_", pixels.flip(3))):
            for name, value in zip(("mean", "std"), encode_moments(vae, picture), strict=True):
                torch.testing.assert_close(tensors[prefix + name].float(), value[0], rtol=2**-10, atol=1e-6)
    assert read_manifest(out).settings["moments"]["digest"] == about.digest
    assert read_manifest(out).members == read_manifest(raw).members


def test_order_is_the_same_from_raw_cached_and_mixed_shards(base, run, make_shards, tmp_path):
    one, two = make_shards([5, 4], "one"), make_shards([6, 3], "two")
    for name in ("one", "two"):
        assert run(tmp_path / name, tmp_path / f"cached-{name}") == 0
    transform = WithCaches(SquareImage(SIZE, flip=False), (source(base)[1],))
    orders = []
    for places in ([one, two], [tmp_path / "cached-one", tmp_path / "cached-two"], [tmp_path / "cached-one", two]):
        loader = make_loader(places, transform, 4, rank=0, world_size=1, seed=3, window=2, batches=9)
        batches = list(loader)
        rows = [
            (int(epoch), int(sample), picture.sum().item(), cached)
            for batch in batches
            for epoch, sample, picture, cached in zip(
                batch["epoch"], batch["sample_id"], batch["pixels"], batch["cached"], strict=True
            )
        ]
        orders.append([row[:3] for row in rows])
        expected = [str(places[0 if row[1] < 9 else 1].name).startswith("cached") for row in rows]
        assert [row[3] for row in rows] == expected
    assert orders[0] == orders[1] == orders[2]


def test_bad_and_lost_samples_keep_their_places(base, run, make_picture, tmp_path, capsys):
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    rows = [(f"{number:03d}", {"png": make_picture(number), "txt": b"caption"}) for number in range(6)]
    rows[2] = ("002", {"png": b"no picture", "txt": b"caption"})
    rows[4] = ("004", {"txt": b"caption alone"})
    shards = [write_shard(raw / "0.tar", rows), write_shard(raw / "1.tar", rows[:2])]
    (raw / "1.tar").unlink()
    write_manifest(raw, Manifest(tuple(shards), ("png",)))
    assert run(raw, out) == 2
    assert "2 of 8 samples could not be read" in capsys.readouterr().err
    assert run(raw, out, "--max-bad-rate", "0.3") == 2
    assert "4 of 8 sources are bad" in capsys.readouterr().err
    assert run(raw, out, "--max-bad-rate", "0.5") == 0
    assert "4 bad samples have no moments" in capsys.readouterr().out
    report = [json.loads(line) for line in (out / shard_build.REPORT).read_text().splitlines()]
    assert [row["source"] for row in report] == ["0.tar[2]", "0.tar[4]", "1.tar[0]", "1.tar[1]"]
    assert read_manifest(out).samples == 8
    transform = WithCaches(SquareImage(SIZE), (source(base)[1],))
    seen = []
    for place in (raw, out):
        loader = make_loader([place], transform, 2, rank=0, world_size=1, seed=1, batches=8, ceiling=1)
        seen.append([batch["sample_id"].tolist() for batch in loader])
        assert loader.skips.skipped == 8  # four in each of two epochs
    assert seen[0] == seen[1]


def test_values_beyond_half_precision_leave_the_sample_raw(base, run, make_shards, tmp_path, monkeypatch, capsys):
    raw, out = make_shards([3]), tmp_path / "out"

    def huge(vae: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = encode_moments(vae, pixels)
        mean[1] = 1e5
        return mean, std

    monkeypatch.setattr(moments, "encode_moments", huge)
    assert run(raw, out, "--max-bad-rate", "0.5") == 0
    assert cached_samples.NOT_FINITE in capsys.readouterr().out
    assert [MEMBER in row for row in members(out)] == [True, False, True]


def test_a_stopped_build_goes_on_and_ends_with_the_same_bytes(run, make_shards, tmp_path, monkeypatch, capsys):
    raw, whole, stopped = make_shards([5, 5, 5]), tmp_path / "whole", tmp_path / "stopped"
    assert run(raw, whole) == 0
    calls = []

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # in the second shard
            raise KeyboardInterrupt
        return encode_moments(*arguments)

    monkeypatch.setattr(moments, "encode_moments", failing)
    assert run(raw, stopped) == 130
    assert not (stopped / "manifest.json").exists()
    assert not list(stopped.glob("*.partial"))
    with pytest.raises(ValueError, match="unfinished"):
        open_shards(stopped)
    monkeypatch.undo()
    capsys.readouterr()
    assert run(raw, stopped) == 0
    assert "3 shards, 0.1 MB, 1 of them from an earlier run" in capsys.readouterr().out
    assert digests(stopped) == digests(whole)


def test_another_cache_in_the_folder_is_refused(run, make_shards, tmp_path, capsys):
    raw, out = make_shards([3]), tmp_path / "out"
    assert run(raw, out) == 0
    before = digests(out)
    assert run(raw, out, "--flip") == 2
    assert "moments.flipped: False there, True now" in capsys.readouterr().err
    assert digests(out) == before


def test_caching_a_cache_replaces_its_moments(run, make_shards, tmp_path):
    raw = make_shards([3])
    assert run(raw, tmp_path / "one") == 0
    assert run(tmp_path / "one", tmp_path / "two") == 0
    assert [*members(tmp_path / "one")] == [*members(tmp_path / "two")]


def test_doubled_and_odd_keys_stay_apart(base, run, make_picture, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    rows = [("a", {"png": b"bad"}), ("a", {"png": make_picture(1)}), ("b/../c", {"png": make_picture(2)})]
    write_manifest(raw, Manifest((write_shard(raw / "0.tar", rows),)))
    assert run(raw, out, "--max-bad-rate", "0.5") == 0
    assert [sorted(row) for row in members(out)] == [["png"], [MEMBER, "png"], [MEMBER, "png"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "9"), "multiple of 2"),
        (("--batch-size", "0"), "`batch_size`=0"),
        (("--device", "nowhere"), "`device`=nowhere"),
        (("--base", "no/such/base"), "`base`=no/such/base does not exist"),
        (("--max-bad-rate", "2"), "`max_bad_rate`"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run, make_shards, tmp_path, capsys, arguments, message):
    assert run(make_shards([2]), tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_folder_that_is_read_is_not_written(run, make_shards, capsys):
    raw = make_shards([2])
    before = digests(raw)
    assert run(raw, raw) == 2
    assert "is the folder that is read" in capsys.readouterr().err
    assert digests(raw) == before


def test_exchanged_shards_are_not_taken_for_those_of_the_cache(run, make_shards, tmp_path, capsys):
    raw, other, out = make_shards([3, 2]), make_shards([1, 3, 2], "other"), tmp_path / "out"
    for folder in (raw, other):
        for path in folder.glob("*.json"):  # neither manifest nor indices: as others make shards
            path.unlink()
    assert run(raw, out) == 0
    before = digests(out)
    assert run(raw, out) == 0, "as they were"
    (raw / "00001.tar").write_bytes((other / "00002.tar").read_bytes())  # as many samples, and as many bytes
    capsys.readouterr()
    assert run(raw, out) == 2
    assert "holds another build (shards_sha256: " in capsys.readouterr().err
    assert digests(out) == before
    assert run(raw, tmp_path / "new") == 0
    assert [row["png"] for row in members(tmp_path / "new")] == [row["png"] for row in members(raw)]


def test_shards_that_are_not_their_manifests_are_told_and_read_as_they_are(run, make_shards, tmp_path, capsys):
    raw, other, out = make_shards([3]), make_shards([1, 3], "other"), tmp_path / "out"
    assert run(raw, out) == 0
    (raw / "00000.tar").write_bytes((other / "00001.tar").read_bytes())
    assert run(raw, out) == 2
    said = capsys.readouterr()
    assert "has other bytes than its manifest says" in said.out
    assert "holds another build (shards_sha256: " in said.err
    assert run(raw, tmp_path / "new") == 0
    assert [row["png"] for row in members(tmp_path / "new")] == [row["png"] for row in members(other)][1:]


def test_what_was_passed_over_in_the_shards_is_said_and_held_against_the_ceiling(
    run, make_shards, tmp_path, capsys, caplog
):
    raw, out = make_shards([3, 3]), tmp_path / "out"
    (raw / "00002.tar").write_bytes(b"")
    for path in raw.glob("*.json"):
        path.unlink()
    assert run(raw, out) == 2
    assert "3 of 9 samples could not be read, above the ceiling of 1.00%" in capsys.readouterr().err
    assert not out.exists()
    caplog.clear()
    assert run(raw, out, "--max-bad-rate", "0.4") == 0
    assert "1 x empty shard" in caplog.text
    assert "done: 6 samples in 2 shards" in capsys.readouterr().out


def test_shards_of_one_name_in_several_folders_are_refused(run, make_shards, tmp_path, capsys):
    (tmp_path / "all").mkdir()
    make_shards([2], "all/a")
    make_shards([3], "all/b")
    assert run(tmp_path / "all", tmp_path / "out") == 2
    assert "has shards of one name in several folders" in capsys.readouterr().err
    assert run(tmp_path / "all" / "{a,b}" / "00000.tar", tmp_path / "all" / "b") == 2
    assert "is the folder that is read" in capsys.readouterr().err
