import json
import shutil

import pytest
import torch

from data.build import main as build_shards
from data.shards.reading.shard_reader import BadSample, ShardReader
from data.shards.reading.skips import TooManySkipped
from data.shards.shard_set import open_shards
from data.world.scenes import move_scenes, sample_scenes
from tests.fixtures.shards import write_pairs
from train.run.metrics_file import read_metrics
from train.sources.held_out import HELD_OUT_SEED
from train.sources.shard_data import ShardPictures
from train.sources.stage_data import Position
from train.sources.world_data import draw_bytes


def batches(shards, position, monkeypatch, **options):
    data = ShardPictures(batch_size=2, shards=str(shards), image_size=32, held_out=0, **options)
    monkeypatch.setattr(type(data), "position", lambda self, **_: position)
    return list(data.train_dataloader())


def test_order_is_that_of_the_step_and_the_sample(shards, monkeypatch):
    whole = batches(shards, Position(0, 12), monkeypatch)
    keys = torch.cat([batch["keys"] for batch in whole])
    assert keys[:, 0].tolist() == [0] * 24
    assert sorted(keys[:, 1].tolist()) == list(range(24))
    rest = batches(shards, Position(5, 12), monkeypatch)
    assert all(torch.equal(one["keys"], other["keys"]) for one, other in zip(rest, whole[5:], strict=True))
    assert all(torch.equal(one["pixels"], other["pixels"]) for one, other in zip(rest, whole[5:], strict=True))


def test_what_is_passed_over_is_said_once(shards, monkeypatch, tmp_path, caplog):
    folder = tmp_path / "odd"
    shutil.copytree(shards, folder)
    (folder / "._00000.tar").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    batches(folder, Position(0, 1), monkeypatch)
    assert caplog.text.count("found in the data") == 1


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


@pytest.mark.parametrize("kind", ["shards", "world"])
def test_held_out_pairs_have_the_columns_of_the_training(tmp_path, kind):
    pairs = tmp_path / "pairs"
    options = ("--count", "6", "--size", "32", "--seed", "9", "--pairs", "moved")
    assert build_shards(["world", str(pairs), *options]) == 0
    own = {"held_out_shards": str(pairs)} if kind == "shards" else {"held_out_world": True}
    training = write_pairs(tmp_path / "training" / "0.tar", 4).parent
    data = ShardPictures(2, str(training), image_size=32, held_out=5, flip=True, reference="reference", **own)
    data.setup("fit")
    batch = data.held_out_batch(slice(1, 4), torch.device("cpu"))
    assert batch["pixels"].shape == batch["frames"].shape == (3, 3, 32, 32)
    seed = 9 if kind == "shards" else HELD_OUT_SEED
    scenes = sample_scenes(5, seed)
    assert torch.equal(data.held_out_columns["frames"], draw_bytes(scenes, 32))
    assert torch.equal(data.held_out_pixels, draw_bytes(move_scenes(scenes, seed), 32))
    if kind == "world":
        assert torch.equal(data.held_out_scenes.center_x, move_scenes(scenes, seed).center_x)


@pytest.mark.parametrize("kind", ["shards", "held_out_shards"])
def test_shards_without_the_references_are_refused_before_anything_is_loaded(shards, tmp_path, kind):
    places = {"shards": str(shards), "held_out_shards": str(shards)}
    places |= {kind: str(write_pairs(tmp_path / "pairs" / "0.tar", 4).parent)}
    with pytest.raises(TooManySkipped, match=r"24 of 24 samples could not be read.*no `reference` "):
        ShardPictures(2, image_size=32, held_out=5, reference="reference", **places)


@pytest.mark.heavy
def test_training_goes_on_into_the_next_epoch(settings, fit, tmp_path):
    folder = tmp_path / "few"
    assert build_shards(["world", str(folder), "--count", "4", "--size", "32", "--samples-per-shard", "2"]) == 0
    config = settings(**{"data.init_args.shards": str(folder), "run.max_steps": 5})
    assert fit(config) == 0


@pytest.fixture
def damaged(shards, tmp_path):
    """The shards, of which one ends in its middle, and how many samples are lost."""
    folder = tmp_path / "damaged"
    shutil.copytree(shards, folder)
    victim = sorted(folder.glob("*.tar"))[1]
    content = victim.read_bytes()
    victim.write_bytes(content[: len(content) // 2])
    reader, lost = ShardReader(open_shards(folder)), 0
    for number in range(8):
        try:
            reader.read(1, number)
        except BadSample:
            lost += 1
    assert 0 < lost < 8
    return folder, lost


@pytest.mark.heavy
def test_a_damaged_shard_is_named_once_and_left_out_until_it_is_too_much(damaged, settings, fit, capsys, tmp_path):
    folder, lost = damaged
    none = {"data.init_args.held_out": 0, "data.init_args.held_out_world": False}
    # Two epochs of 24 samples.
    twice = {**none, "data.init_args.shards": str(folder), "run.max_steps": 24, "run.checkpoint_every": 12}
    assert fit(settings(**twice, **{"data.init_args.ceiling": 1.0})) == 0
    lines = (tmp_path / "run" / "unreadable_samples.txt").read_text().splitlines()
    names = [json.loads(line)["name"] for line in lines]
    assert len(set(names)) == len(names) == 1
    assert read_metrics(tmp_path / "run" / "metrics.csv")["skipped_samples"][-1] == (24, 2 * lost)
    strict = {"data.init_args.ceiling": 1e-6, "run.folder": str(tmp_path / "strict")}
    assert fit(settings(**twice, **strict)) == 2, "what is lost already is refused before anything is loaded"
    shown = capsys.readouterr().err
    assert "could not be read, above the ceiling" in shown
    assert "Traceback" not in shown


@pytest.mark.heavy
def test_a_run_that_goes_on_has_counted_what_it_skipped_before(damaged, settings, fit, tmp_path):
    """The last line of the first part is at step 10, its checkpoint at step 13."""
    folder, lost = damaged
    steady = {"data.init_args.shards": str(folder), "data.init_args.ceiling": 1.0, "run.checkpoint_every": 13}
    steady |= {"data.init_args.held_out": 0, "data.init_args.held_out_world": False}
    figures = []
    for name, parts in (("whole", (24,)), ("parts", (13, 24))):
        for steps in parts:
            changes = {"run.folder": str(tmp_path / name), "run.max_steps": steps, "run.log_every": 5}
            assert fit(settings(**steady, **changes)) == 0
        figures.append(dict(read_metrics(tmp_path / name / "metrics.csv")["skipped_samples"]))
    whole, parts = figures
    assert whole[24] == 2 * lost
    assert list(parts) == [5, 10, 13, 15, 20, 24]
    assert {step: value for step, value in parts.items() if step != 13} == whole
