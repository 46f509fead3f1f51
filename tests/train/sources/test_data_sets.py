"""Several data sets in one order: counted exactly, each with settings of its own."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from data.build import main as build
from data.shards.buckets import Buckets
from data.shards.reading.square_image import SquareImage
from tests.fixtures.shards import make_loader, save_image
from train.cli import main as train
from train.sources.data_sets import DataSet, data_sets, make_order, open_sets
from train.sources.shard_data import ShardPictures
from train.sources.stage_data import Position


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Shards of twelve lying, eight standing and four square pictures."""
    shapes = [(32, 64)] * 12 + [(64, 32)] * 8 + [(48, 48)] * 4
    for number, (height, width) in enumerate(shapes):
        save_image(tmp_path / "pictures" / f"{number:02d}.png", height, width, seed=number)
    folder = tmp_path / "mixed"
    assert build(["folder", str(tmp_path / "pictures"), str(folder), "--samples-per-shard", "8"]) == 0
    return folder


def batches(position: Position, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[dict[str, Any]]:
    data = ShardPictures(**{"batch_size": 2, "image_size": 48, "held_out": 0, **options})
    monkeypatch.setattr(type(data), "position", lambda self, **order: position)
    return list(data.train_dataloader())


def test_entries_of_a_list_are_folders_with_or_without_settings():
    sets = data_sets(["a", {"shards": "b", "repeats": 3}, DataSet("c", flip=True)])
    assert sets == [DataSet("a"), DataSet("b", repeats=3), DataSet("c", flip=True)]
    assert data_sets(None) == []
    assert data_sets("a") == [DataSet("a")]
    with pytest.raises(ValueError, match="`repeats`=0"):
        DataSet("a", repeats=0)


def test_an_epoch_goes_through_each_set_as_often_as_it_says(make_shards):
    small, large = str(make_shards([3, 2], "small")), str(make_shards([7, 8], "large"))
    shards, first = open_sets([DataSet(small, repeats=3), DataSet(large)])
    assert first == (0, 15)
    plan = make_order(shards, None, 2, seed=1, window=4)
    for epoch in range(3):
        places = [plan.place(epoch * 30 + position) for position in range(30)]
        counts = Counter((str(shards.shards[place.shard].location), place.number) for place in places)
        assert sorted(counts.values()) == [1] * 15 + [3] * 5
        assert len({place.sample_id for place in places}) == 30, "each time is a sample of its own"


def test_each_set_is_cut_and_mirrored_by_its_own_settings(pictures, shards, monkeypatch):
    sets = [{"shards": str(pictures), "flip": True, "crop": "random"}, {"shards": str(shards), "repeats": 2}]
    data = ShardPictures(2, sets, image_size=32, held_out=0)
    monkeypatch.setattr(type(data), "position", lambda self, **order: Position(0, 36))
    plain = {
        int(key[1]): image
        for batch in batches(
            Position(0, 36), monkeypatch, image_size=32, shards=[str(pictures), str(shards), str(shards)]
        )
        for key, image in zip(batch["keys"], batch["pixels"], strict=True)
    }
    changed = set()
    for batch in data.train_dataloader():
        for (_, number), image in zip(batch["keys"].tolist(), batch["pixels"], strict=True):
            changed |= set() if torch.equal(image, plain[number]) else {number}
    assert len(plain) == 72
    assert changed
    assert max(changed) < 24, "only those of the first set"


def test_batches_have_one_shape_and_say_how_pictures_were_cut(pictures, monkeypatch):
    buckets = Buckets(group=4, resolutions=(48,), step=16)
    found = batches(Position(0, 12), monkeypatch, shards=str(pictures), buckets=buckets, flip=True)
    assert {tuple(batch["pixels"].shape[2:]) for batch in found} == {(32, 64), (64, 32), (48, 48)}
    assert sorted(int(key[1]) for batch in found for key in batch["keys"]) == list(range(24))
    for batch in found:
        assert batch["frames"].shape == batch["pixels"].shape
        assert torch.equal(batch["frames"], batch["pixels"]), "nothing is cut from pictures of these proportions"
        height, width = batch["pixels"].shape[2:]
        assert batch["size_ids"].tolist() == [[height, width, 0, 0, height, width]] * 2


def test_processes_and_restarts_read_what_one_process_reads(pictures, monkeypatch):
    options = {"shards": str(pictures), "buckets": Buckets(group=4, resolutions=(48,), step=16)}
    whole = torch.cat([batch["keys"] for batch in batches(Position(0, 12, 2), monkeypatch, **options)])
    parts = [batch["keys"] for batch in batches(Position(0, 5, 2), monkeypatch, **options)]
    ranks = [batches(Position(5, 12, 1, rank, 2), monkeypatch, **options) for rank in range(2)]
    parts += [batch["keys"] for pair in zip(*ranks, strict=True) for batch in pair]
    assert torch.equal(torch.cat(parts), whole)


def test_a_group_that_is_no_whole_number_of_batches_is_refused(pictures):
    shards, _ = open_sets([DataSet(str(pictures))])
    with pytest.raises(ValueError, match=r"`buckets.group`=16 must be a multiple of `batch_size`=3"):
        make_order(shards, Buckets(), 3, seed=0, window=8)


def test_fit_trains_on_buckets_and_plan_says_what_they_cost(pictures, settings, fit, tmp_path, capsys):
    import yaml

    buckets = {"group": 4, "resolutions": [48], "step": 16}
    config = settings(**{"data.init_args.shards": [{"shards": str(pictures), "repeats": 2}], "run.max_steps": 12})
    config["data"]["init_args"] |= {"buckets": buckets, "image_size": 48, "batch_size": 2}
    config["stage"]["init_args"]["encoder_size"] = 32
    assert fit(config) == 0
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    told = capsys.readouterr().out
    assert train(["plan", "--config", str(tmp_path / "c.yaml")]) == 0
    said = capsys.readouterr().out
    assert "48 samples in 6 shards" in said
    waste = "3 shapes in groups of 4: no sample is padded, dropped or repeated; 0.0% of the pixels"
    assert f"buckets  {waste}" in said
    assert f"note: {waste}" in told
    assert json.loads((tmp_path / "run" / "run.json").read_text())["starts"][-1]["pictures"].startswith(waste)


def test_pictures_that_squares_enlarge_are_told_by_builder_plan_and_fit(settings, fit, tmp_path, capsys):
    for number in range(8):
        save_image(tmp_path / "pictures" / f"{number}.png", 20 if number == 3 else 40, 40, seed=number)
    words = ["folder", str(tmp_path / "pictures"), str(tmp_path / "small"), "--size", "32", "--samples-per-shard", "4"]
    assert build(words) == 0
    told = "1 of 8 pictures are enlarged, up to 1.6 times"
    assert f"{told} by a training at 32 pixels" in capsys.readouterr().out
    config = settings(**{"data.init_args.shards": str(tmp_path / "small"), "run.max_steps": 1})
    assert fit(config) == 0
    assert f"note: {told}" in capsys.readouterr().out
    assert fit(config, "--plan") == 0
    assert f"pictures {told}" in capsys.readouterr().out


def test_a_run_with_buckets_that_was_stopped_ends_as_the_whole_one(pictures, settings, fit, load, tmp_path):
    common = {"data.init_args.shards": str(pictures), "run.checkpoint_every": 7}
    for name, parts in (("whole", (14,)), ("parts", (7, 14))):
        for steps in parts:
            config = settings(**common, **{"run.max_steps": steps, "run.folder": str(tmp_path / name)})
            config["data"]["init_args"] |= {"buckets": {"group": 4, "resolutions": [48], "step": 16}, "batch_size": 2}
            assert fit(config) == 0
    whole, parts = (load(tmp_path / name / "step-00000014.ckpt")["state_dict"] for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], value) for name, value in parts.items())
    config["data"]["init_args"]["buckets"]["group"] = 8
    assert fit(config | {"run": config["run"] | {"max_steps": 16}}) == 2, "another group is another order"


def test_batches_that_would_straddle_two_buckets_are_refused(pictures):
    shards, _ = open_sets([DataSet(str(pictures))])
    plan = make_order(shards, Buckets(group=4, resolutions=(48,), step=16), 4, seed=0, window=8)
    loader = make_loader(shards, SquareImage(48), 4, rank=0, world_size=1, plan=plan)
    loader.seek(12)
    with pytest.raises(ValueError, match="`samples_consumed`=6 must be a multiple of `batch_size`=4"):
        loader.seek(6)
