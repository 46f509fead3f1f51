import json
import shutil

import torch

from data.build import main as build_shards
from train.records import read_metrics
from train.shard_data import ShardPictures
from train.stream import Position


def batches(shards, position, monkeypatch, **options):
    data = ShardPictures(batch_size=2, shards=str(shards), image_size=32, held_out=0, **options)
    monkeypatch.setattr(type(data), "position", lambda self: position)
    return list(data.train_dataloader())


def test_order_is_that_of_the_step_and_the_sample(shards, monkeypatch):
    whole = batches(shards, Position(0, 12), monkeypatch)
    keys = torch.cat([batch["keys"] for batch in whole])
    assert keys[:, 0].tolist() == [0] * 24
    assert sorted(keys[:, 1].tolist()) == list(range(24))
    rest = batches(shards, Position(5, 12), monkeypatch)
    assert all(torch.equal(one["keys"], other["keys"]) for one, other in zip(rest, whole[5:], strict=True))
    assert all(torch.equal(one["pixels"], other["pixels"]) for one, other in zip(rest, whole[5:], strict=True))


def test_ranks_share_a_global_batch(shards, monkeypatch):
    whole = batches(shards, Position(0, 6, accumulate=2), monkeypatch)
    ranks = [batches(shards, Position(0, 6, rank=rank, world_size=2), monkeypatch) for rank in range(2)]
    for step in range(6):
        shared = torch.cat([rank[step]["keys"] for rank in ranks])
        assert torch.equal(shared, torch.cat([batch["keys"] for batch in whole[2 * step : 2 * step + 2]]))


def test_held_out_pictures(shards, held_out_shards):
    data = ShardPictures(2, str(shards), image_size=32, held_out=5, held_out_shards=str(held_out_shards))
    data.setup("fit")
    assert data.held_out_pixels.shape == (5, 3, 32, 32)
    assert data.held_out_scenes is None
    world = ShardPictures(batch_size=2, shards=str(shards), image_size=32, held_out=3, held_out_world=True)
    world.setup("fit")
    assert len(world.held_out_scenes) == 3
    none = ShardPictures(batch_size=2, shards=str(shards), image_size=32)
    none.setup("fit")
    assert none.held_out_pixels.shape == (0, 3, 32, 32)


def test_training_goes_on_into_the_next_epoch(settings, fit, tmp_path):
    folder = tmp_path / "few"
    assert build_shards(["world", str(folder), "--count", "4", "--size", "32", "--samples-per-shard", "2"]) == 0
    config = settings(**{"data.init_args.shards": str(folder), "run.max_steps": 5})
    assert fit(config) == 0


def test_a_damaged_shard_is_named_once_and_left_out_until_it_is_too_much(shards, settings, fit, capsys, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(shards, damaged)
    victim = sorted(damaged.glob("*.tar"))[1]
    content = victim.read_bytes()
    victim.write_bytes(content[: len(content) // 2])
    none = {"data.init_args.held_out": 0, "data.init_args.held_out_world": False}
    # Two epochs of 24 samples.
    twice = {**none, "data.init_args.shards": str(damaged), "run.max_steps": 24, "run.checkpoint_every": 12}
    assert fit(settings(**twice, **{"data.init_args.ceiling": 1.0})) == 0
    lines = (tmp_path / "run" / "unreadable_samples.txt").read_text().splitlines()
    names = [json.loads(line)["name"] for line in lines]
    assert len(set(names)) == len(names) == 1
    skipped = read_metrics(tmp_path / "run" / "metrics.csv")["skipped_samples"][-1][1]
    assert skipped in range(2, 17, 2)  # of the shard's eight, the same in both epochs
    strict = {"data.init_args.ceiling": 1e-6, "run.folder": str(tmp_path / "strict")}
    assert fit(settings(**twice, **strict)) == 1
    shown = capsys.readouterr().err
    assert "could not be read, above the ceiling" in shown
    assert "Traceback" not in shown
