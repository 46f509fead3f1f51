"""No sample is both trained on and evaluated with."""

import io
import json
import shutil
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.build import main as build_shards
from data.cache import main as cache
from train.sources.held_out import HELD_OUT_SEED, check_apart
from train.stages.noise import HELD_OUT_EPOCH
from train.stages.seecoder import SeeCoderStage

EPOCH = {"data.init_args.batch_size": 8, "run.max_steps": 3, "run.evaluate_every": 1, "run.checkpoint_every": 100}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[Any]]:
    """Pictures and keys of noise that a run meets when it trains, and when it evaluates."""
    found: dict[str, set[Any]] = {"trained": set(), "evaluated": set(), "trained keys": set(), "evaluated keys": set()}
    errors = SeeCoderStage.errors

    def spy(self: Any, batch: Any, keys: Any, *rest: Any) -> Any:
        kind = "trained" if self.training else "evaluated"
        found[kind] |= {picture.numpy().tobytes() for picture in batch["pixels"]}
        found[f"{kind} keys"] |= {tuple(key) for key in keys.tolist()}
        return errors(self, batch, keys, *rest)

    monkeypatch.setattr(SeeCoderStage, "errors", spy)
    return found


@pytest.mark.parametrize("kind", ["shards", "world"])
def test_a_run_never_trains_on_what_it_is_evaluated_with(settings, fit, seen, held_out_shards, kind):
    changes: dict[str, Any] = {"data.init_args.held_out": 4}
    if kind == "shards":
        changes |= {"data.init_args.held_out_world": False, "data.init_args.held_out_shards": str(held_out_shards)}
    assert fit(settings(**EPOCH, **changes)) == 0
    assert len(seen["trained"]) == 24  # all of an epoch
    assert len(seen["evaluated"]) == 4
    assert not seen["trained"] & seen["evaluated"]
    assert {epoch for epoch, _ in seen["evaluated keys"]} == {HELD_OUT_EPOCH}
    assert not seen["trained keys"] & seen["evaluated keys"]


def test_fewer_held_out_pictures_than_were_asked_for_are_said(settings, fit, held_out_shards, capsys):
    own = {"data.init_args.held_out_world": False, "data.init_args.held_out_shards": str(held_out_shards)}
    assert fit(settings(**own, **{"data.init_args.held_out": 1000, "run.max_steps": 1})) == 0
    assert "note: `held_out`=1000, of which 8 are there and usable\n" in capsys.readouterr().out


def test_held_out_pictures_are_the_first_of_their_shards(settings, fit, seen, held_out_shards, monkeypatch):
    from data.shards.reading.shard_reader import ShardReader
    from data.shards.reading.square_image import SquareImage
    from data.shards.shard_set import open_shards

    changes = {"data.init_args.held_out_world": False, "data.init_args.held_out_shards": str(held_out_shards)}
    assert fit(settings(**EPOCH, **changes)) == 0
    reader, picture = ShardReader(open_shards(held_out_shards)), SquareImage(32)
    first = [picture(reader.read(0, number), 0, number)["pixels"] for number in range(4)]
    assert seen["evaluated"] == {pixels.numpy().tobytes() for pixels in first}


@pytest.mark.parametrize("kind", ["same", "named otherwise", "among others", "copied", "one shard", "cache", "made of"])
def test_the_same_samples_are_refused(settings, fit, shards, cached, held_out_shards, tmp_path, capsys, kind):
    training: Any = str(shards)
    held_out: Any = str(shards)
    if kind == "named otherwise":
        held_out = str(shards / ".." / shards.name / "manifest.json")
    elif kind == "among others":
        training, held_out = [str(held_out_shards), str(shards)], [str(shards)]
    elif kind == "copied":
        held_out = str(shutil.copytree(shards, tmp_path / "copy"))
    elif kind == "one shard":
        copy = shutil.copytree(shards, tmp_path / "copy")
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["shards"] = manifest["shards"][1:2]
        manifest["totals"] |= {"shards": 1, "samples": 8}
        (copy / "manifest.json").write_text(json.dumps(manifest))
        held_out = str(copy)
    elif kind == "cache":
        training = str(cached)
    elif kind == "made of":
        held_out = str(cached)
    changes = {"data.init_args.shards": training, "data.init_args.held_out_shards": held_out}
    assert fit(settings(**changes, **{"data.init_args.held_out_world": False})) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "must hold other samples than" in line
    assert "other pictures" in line
    assert not (tmp_path / "run").exists()


def test_two_caches_of_the_same_shards_are_the_same(base, shards, cached, tmp_path):
    other = tmp_path / "other"
    assert cache([str(shards), str(other), "--base", str(base), "--size", "16", "--device", "cpu"]) == 0
    with pytest.raises(ValueError, match="must hold other samples than"):
        check_apart([str(cached)], [str(other)])


def test_urls_are_compared_by_name_and_others_are_accepted(shards, held_out_shards):
    url = "https://example.org/shards"
    check_apart([url, str(shards)], [f"{url}-2", str(held_out_shards)])
    with pytest.raises(ValueError, match="must hold other samples than"):
        check_apart([url], [f"{url}/manifest.json"])


def test_names_and_counts_alone_make_no_shards_the_same(tmp_path, picture_shards):
    """Folders of other tools have no manifest, and all of them number their shards from 0."""
    train, held_out = picture_shards("train", 1), picture_shards("held_out", 2)
    check_apart([str(train)], [str(held_out)])
    with pytest.raises(ValueError, match="must hold other samples than"):
        check_apart([str(train)], [str(train)])


@pytest.mark.parametrize("which", ["training", "held out", "both"])
def test_copies_without_a_manifest_are_the_same(which, tmp_path, shards):
    (bare := tmp_path / "bare").mkdir()
    shutil.copy(next(shards.glob("*.tar")), bare / "other.tar")
    other = shutil.copytree(bare, tmp_path / "again") if which == "both" else shards
    with pytest.raises(ValueError, match="must hold other samples than"):
        check_apart(*([str(bare)], [str(other)]) if which == "training" else ([str(other)], [str(bare)]))


def test_no_message_shows_a_password_and_servers_are_the_same_with_and_without():
    with pytest.raises(ValueError, match="must hold other samples than") as error:
        check_apart(["https://u:secret@example.org/x/"], ["https://example.org/x/manifest.json?t=1"])
    assert "secret" not in str(error.value)


@pytest.fixture
def picture_shards(tmp_path):
    """Shards without a manifest, of pictures that a seed draws."""

    def build(name: str, seed: int) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        with tarfile.open(folder / "00000.tar", "w") as shard:
            for number in range(4):
                data = np.random.default_rng((seed, number)).bytes(100)
                entry = tarfile.TarInfo(f"{number:04d}.jpg")
                entry.size = len(data)
                shard.addfile(entry, io.BytesIO(data))
        return folder

    return build


@pytest.mark.heavy
def test_shards_of_the_held_out_scenes_are_refused(settings, fit, tmp_path, capsys):
    folder = tmp_path / "scenes"
    options = ("--count", "4", "--size", "32", "--samples-per-shard", "2", "--seed", str(HELD_OUT_SEED))
    assert build_shards(["world", str(folder), *options]) == 0
    capsys.readouterr()
    assert fit(settings(**{"data.init_args.shards": str(folder)})) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"must hold other scenes than those of seed {HELD_OUT_SEED}" in line
    more = {"data.init_args.seed": 1, "run.max_steps": 1, "data.init_args.shards": str(folder)}
    assert fit(settings(**more)) == 0


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, dict[str, float]]]:
    """Step and figures of all evaluations; each is done twice, and once more when a run begins."""
    found: list[tuple[int, dict[str, float]]] = []
    evaluate = SeeCoderStage.evaluate

    def twice(self: Any) -> dict[str, float]:
        found.append((self.global_step, evaluate(self)))
        torch.rand(3)  # no draw may matter
        found.append((self.global_step, evaluate(self)))
        return found[-1][1]

    def at_start(self: Any) -> None:
        with self.evaluating():
            twice(self)

    monkeypatch.setattr(SeeCoderStage, "evaluate", twice)
    monkeypatch.setattr(SeeCoderStage, "on_train_start", at_start)
    return found


@pytest.mark.heavy
def test_the_same_weights_have_the_same_loss_bit_for_bit_also_when_continued(settings, fit, figures, held_out_shards):
    changes = {"data.init_args.held_out_world": False, "data.init_args.held_out_shards": str(held_out_shards)}
    changes |= {"run.checkpoint_every": 2, "stage.init_args.encoder.position_aware": True}
    assert fit(settings(**changes, **{"run.max_steps": 2})) == 0
    before, figures[:] = list(figures), []
    assert fit(settings(**changes, **{"run.max_steps": 4})) == 0
    assert [step for step, _ in before] == [0, 0, 2, 2]
    assert [step for step, _ in figures] == [2, 2, 4, 4]
    (_, first), (_, again), (_, ended), (_, ended_again) = before
    (_, continued), (_, continued_again), (_, last), _ = figures
    assert first == again
    assert ended == ended_again == continued == continued_again
    losses = [one["held_out_loss"] for one in (first, ended, last)]
    assert len(set(losses)) == 3


@pytest.mark.heavy
def test_an_evaluation_moves_no_random_stream_and_no_weight(settings, fit, load, monkeypatch, tmp_path):
    """As many evaluations as steps, each with draws of its own, or only one at the end: the same run."""
    evaluate, states = SeeCoderStage.evaluate, []

    def drawing(self: Any) -> dict[str, float]:
        torch.rand(3)
        return evaluate(self)

    def note(self: Any, *_: Any) -> None:
        states.append((torch.get_rng_state(), self.encoder.training, self.unet.training))

    monkeypatch.setattr(SeeCoderStage, "evaluate", drawing)
    monkeypatch.setattr(SeeCoderStage, "on_train_batch_end", note)
    steady = {"stage.init_args.encoder.position_aware": True, "run.checkpoint_every": 3, "run.max_steps": 3}
    for name, every in (("often", 1), ("once", 0)):
        assert fit(settings(**steady, **{"run.evaluate_every": every, "run.folder": str(tmp_path / name)})) == 0
    for (state, *modes), (other, *others) in zip(states[:3], states[3:], strict=True):
        assert torch.equal(state, other)
        assert modes == others == [True, False]
    first, second = (load(tmp_path / name / "step-00000003.ckpt") for name in ("often", "once"))
    for part in ("state_dict", "ema"):
        one, other = (run[part].get("averages", run[part]) for run in (first, second))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_drawn_within_an_evaluation_is_drawn_again_after_it(settings):
    from train.settings import OptimizerSettings

    values = settings()["stage"]["init_args"]
    stage = SeeCoderStage(OptimizerSettings(), values["base"], values["encoder"], values["backbone_weights"]).train()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with stage.evaluating():
        torch.rand(7)
        assert not stage.encoder.training
    assert torch.equal(torch.rand(4), expected)
    torch.manual_seed(3)
    with suppress(KeyError), stage.evaluating():
        torch.manual_seed(9)
        raise KeyError
    assert stage.encoder.training
    assert not stage.encoder.backbone.training
    assert torch.equal(torch.rand(4), expected)
