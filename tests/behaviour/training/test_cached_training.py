"""Training on cached shards is training on raw ones: same order, same losses up to half precision."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data.shards.buckets import Buckets
from seecoder import SeeCoder
from tests.fixtures.training import BUCKETS
from train.settings import OptimizerSettings
from train.sources.shard_data import ShardPictures
from train.sources.stage_data import Position
from train.stages.seecoder import SeeCoderStage

SIZE = 32
HALF_STEP = 2.0**-11  # largest relative error of rounding to half precision
HALF_LEAST = 2.0**-25  # largest absolute error where half precision is subnormal
FLOAT_STEP = 2.0**-24
MOMENTS, BOTH = ("moments_source",), ("moments_source", "maps_source")


@pytest.fixture
def stage(settings: Any) -> SeeCoderStage:
    values = settings()["stage"]["init_args"]
    values.pop("optimizer")
    encoder = {**values.pop("encoder"), "decoder_dropout": 0.0}
    return SeeCoderStage(OptimizerSettings(lr=1e-3), encoder=encoder, **values).train()


@pytest.fixture
def batches(stage: SeeCoderStage, monkeypatch: pytest.MonkeyPatch) -> Any:
    def read(*places: Path, kinds: tuple[str, ...] = MOMENTS, **options: Any) -> list[dict[str, Any]]:
        data = ShardPictures(4, [str(place) for place in places], SIZE, flip=True, window=2, seed=1, **options)
        monkeypatch.setattr(data, "position", lambda **_: Position(0, 12))
        sources = tuple(getattr(stage, kind)(SIZE) for kind in kinds)
        monkeypatch.setattr(data, "_cache_sources", lambda *_: sources)
        return list(data.train_dataloader())

    return read


def loss_and_bound(stage: SeeCoderStage, raw: dict[str, Any], batch: dict[str, Any]) -> tuple[float, float, float]:
    """Both losses, and how far half precision may carry them apart.

    Between the moments of the raw and of the cached batch the loss changes by the integral of its gradient, which the
    trapezoid rule gives up to third order: at most sum(|error| * (|gradient| + |gradient'|) / 2). The error of a value
    is at most half a step of half precision, and what one and the same autoencoder leaves open in float32: sums of
    about a thousand products in another order.
    """
    losses, gradients, moments = [], [], []
    for one in (raw, batch):
        leaves = [value.detach().requires_grad_() for value in stage.moments(one)]
        loss = stage.loss({**one, "latent_mean": leaves[0], "latent_std": leaves[1], "cached": [True] * len(leaves[0])})
        losses.append(float(loss.detach()))
        gradients.append(torch.autograd.grad(loss, leaves))
        moments.append(leaves)
    bound = 0.0
    for value, first, second in zip(moments[0], *gradients, strict=True):
        size = value.detach().abs()
        rounding = HALF_STEP * size + HALF_LEAST + 1000 * FLOAT_STEP * size.amax()
        bound += float((rounding * (first.abs() + second.abs()) / 2).sum())
    return losses[0], losses[1], bound + 1000 * FLOAT_STEP * losses[0]


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["cached", "mixed"])
def test_losses_and_order_are_those_of_raw_shards(stage, batches, shards, cached, kind):
    raw = batches(shards, shards)
    other = batches(cached, cached if kind == "cached" else shards)
    rows = 0
    for before, after in zip(raw, other, strict=True):
        assert torch.equal(before["keys"], after["keys"])
        assert torch.equal(before["pixels"], after["pixels"])
        assert "latent_mean" not in before
        expected = [kind == "cached" or sample < 24 for sample in after["keys"][:, 1].tolist()]
        assert after.get("cached", ["latent_mean" in after] * 4) == expected
        rows += sum(expected)
        plain, loss, bound = loss_and_bound(stage, before, after)
        assert float(stage.loss(after).detach()) == pytest.approx(loss, rel=1e-6)
        assert abs(loss - plain) <= bound
        assert bound < 0.02 * plain  # the bound says something
    assert rows == (48 if kind == "cached" else 24)


def test_losses_of_cached_buckets_are_those_of_pictures(stage, mixed_shards, cached_buckets, monkeypatch, tmp_path):
    """At two resolutions, mirrored or not."""
    sets = []
    for place in (mixed_shards, cached_buckets):
        data = ShardPictures(4, str(place), SIZE, flip=True, window=2, buckets=Buckets(**BUCKETS), held_out=0)
        data.trainer = SimpleNamespace(lightning_module=stage, default_root_dir=str(tmp_path))
        monkeypatch.setattr(data, "position", lambda **_: Position(0, 6))
        sets.append(list(data.train_dataloader()))
    shapes = set()
    for before, after in zip(*sets, strict=True):
        for name in ("keys", "pixels", "frames", "size_ids"):
            assert torch.equal(before[name], after[name]), name
        shapes.add(shape := tuple(after["pixels"].shape[2:]))
        assert "latent_mean" not in before
        assert after["latent_mean"].shape[2:] == (shape[0] // 4, shape[1] // 4)
        plain, loss, bound = loss_and_bound(stage, before, after)
        assert float(stage.loss(after).detach()) == pytest.approx(loss, rel=1e-6)
        assert abs(loss - plain) <= bound < 0.02 * plain
    assert shapes == {(32, 64), (64, 32), (96, 96)}


def test_another_samples_moments_break_the_bound(stage, batches, shards, cached):
    before, after = batches(shards)[0], batches(cached)[0]
    after["latent_mean"] = after["latent_mean"].roll(1, 0)
    plain, loss, bound = loss_and_bound(stage, before, after)
    assert abs(loss - plain) > bound


@pytest.mark.parametrize(("kind", "buckets"), [("cached", None), ("cached_buckets", BUCKETS)])
def test_a_cached_run_never_encodes(settings, fit, request, monkeypatch, tmp_path, kind, buckets):
    import train.stages.seecoder

    def refuse(*_: Any) -> Any:
        raise AssertionError("encoded")

    shards = str(request.getfixturevalue(kind))
    changes = {"data.init_args.shards": shards, "data.init_args.flip": True, "run.max_steps": 2}
    changes |= {"data.init_args.held_out_world": False, "data.init_args.held_out": 0}
    changes |= {"data.init_args.buckets": buckets}
    monkeypatch.setattr(train.stages.seecoder, "encode_moments", refuse)
    assert fit(settings(**changes)) == 0
    with pytest.raises(AssertionError, match="encoded"):
        fit(settings(**changes, **{"data.init_args.cached_moments": False, "run.folder": str(tmp_path / "raw")}))


def test_moments_of_another_autoencoder_are_refused_in_one_line(settings, fit, cached, tmp_path, capsys):
    changes = {"data.init_args.shards": str(cached), "stage.init_args.vae_dtype": "bfloat16"}
    assert fit(settings(**changes)) == 2
    error = capsys.readouterr().err
    assert "holds moments of" in error
    assert "float32" in error
    assert "bfloat16" in error
    assert error.count("\n") == 1


@pytest.mark.heavy
def test_a_run_may_change_to_cached_shards_and_sees_the_same_samples(
    settings, fit, shards, cached, monkeypatch, tmp_path
):
    """Position is a number of samples, so the switch changes nothing but where moments come from."""
    seen: list[Any] = []
    original = SeeCoderStage.loss
    monkeypatch.setattr(
        SeeCoderStage, "loss", lambda self, batch: (seen.append(batch["keys"].tolist()), original(self, batch))[1]
    )
    options = {"data.init_args.flip": True, "data.init_args.held_out": 0, "data.init_args.held_out_world": False}
    assert fit(settings(**options, **{"run.max_steps": 4, "run.folder": str(tmp_path / "whole")})) == 0
    whole, seen[:] = list(seen), []
    assert fit(settings(**options, **{"run.max_steps": 2})) == 0
    assert fit(settings(**options, **{"run.max_steps": 4, "data.init_args.shards": str(cached)})) == 0
    assert seen == whole


@torch.no_grad()
def test_cached_maps_give_the_context_of_maps_in_half_precision(stage, batches, shards, with_maps):
    raw, whole = batches(shards, shards, kinds=BOTH)[:4], batches(with_maps, with_maps, kinds=BOTH)[:4]
    for place, other in (("all", whole), ("some", batches(with_maps, shards, kinds=BOTH)[:4])):
        for before, after in zip(raw, other, strict=True):
            assert torch.equal(before["keys"], after["keys"])
            rounded = [place == "all" or sample < 24 for sample in after["keys"][:, 1].tolist()]
            assert after.get("maps_cached", ["map_0" in after] * 4) == rounded
            pixels = before["pixels"].float() / 255
            expected = [
                torch.where(torch.tensor(rounded)[:, None, None, None], level.half().float(), level)
                for level in stage.encoder.compute_maps(pixels)
            ]
            context, _ = stage.encode(after, after["keys"])
            torch.testing.assert_close(context, stage.encoder.encode_maps(expected).context, rtol=0, atol=2e-3)
            torch.testing.assert_close(context, stage.encode(before, before["keys"])[0], rtol=0, atol=0.05)


def test_a_run_on_maps_never_calls_the_encoders_backbone(settings, fit, with_maps, monkeypatch):
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("encoded")

    changes = {"data.init_args.shards": str(with_maps), "data.init_args.flip": True, "run.max_steps": 2}
    changes |= {"data.init_args.held_out_world": False, "data.init_args.held_out": 0}
    monkeypatch.setattr(SeeCoder, "encode", refuse)
    assert fit(settings(**changes)) == 0


def test_maps_of_another_backbone_are_refused_in_one_line(settings, fit, with_maps, capsys):
    changes = {"data.init_args.shards": str(with_maps), "stage.init_args.frozen_dtype": "bfloat16"}
    assert fit(settings(**changes)) == 2
    error = capsys.readouterr().err
    assert "holds maps of" in error
    assert error.count("\n") == 1
