from typing import Any

import pytest
import torch

from tests.fixtures.training import batch_of
from train.sources.stage_data import StageData
from train.stages.context_gaps import token_similarity
from train.stages.seecoder import SeeCoderStage


def held_out(pixels: torch.Tensor, batch_size: int, **columns: torch.Tensor) -> Any:
    """A data source with these held-out samples."""
    data: Any = StageData(batch_size)
    data.held_out_pixels, data.held_out_columns, data.held_out_scenes = pixels, columns, None
    return data


def test_token_similarity_tells_one_repeated_token_from_many():
    tokens = torch.randn(3, 1, 8, generator=torch.Generator().manual_seed(0))
    assert token_similarity(3 * tokens.expand(3, 5, 8)) == pytest.approx(1, abs=1e-6)
    assert token_similarity(torch.eye(8)[None, :5]) == pytest.approx(0, abs=1e-6)
    assert token_similarity(torch.tensor([[[1.0, 0.0], [-2.0, 0.0]]])) == pytest.approx(-1, abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(("count", "at_once"), [(5, 1), (5, 2), (5, 4), (5, 8), (2, 1)])
def test_every_held_out_picture_gets_anothers_context_however_many_go_at_once(stage, monkeypatch, count, at_once):
    trained = stage(encoder={"decoder_dropout": 0.0}).eval()
    pixels = batch_of(count)["pixels"]
    seen, errors = [], trained.errors

    def spy(batch, keys, times, context, pooled):
        seen.append((keys, context))
        return errors(batch, keys, times, context, pooled)

    def evaluate(size: int) -> dict[str, float]:
        data = held_out(pixels, size)
        monkeypatch.setattr(SeeCoderStage, "data", data)
        return trained.evaluate()

    monkeypatch.setattr(trained, "errors", spy)
    figures = evaluate(at_once)
    own, shuffled, none = (torch.cat([context for _, context in seen[kind::3]]) for kind in range(3))
    assert torch.equal(shuffled, torch.stack([own[number - 1] for number in range(count)]))
    assert not any(torch.equal(one, other) for one, other in zip(own, shuffled, strict=True))
    assert not none.any()
    assert all(torch.equal(keys, seen[3 * (number // 3)][0]) for number, (keys, _) in enumerate(seen))  # paired noise
    assert abs(figures["gap_shuffled"]) > 1e-5
    assert figures == evaluate(at_once)
    whole = evaluate(count)
    rounding = 1e-6 * whole["held_out_loss"]  # of the losses, whose differences the gaps are
    assert all(figures[name] == pytest.approx(whole[name], abs=rounding) for name in ("gap_shuffled", "gap_none"))


@torch.no_grad()
def test_a_single_held_out_picture_has_no_shuffled_context(stage, monkeypatch, capsys):
    trained = stage().eval()
    data = held_out(batch_of(1)["pixels"], 2)
    monkeypatch.setattr(SeeCoderStage, "data", data)
    assert trained.evaluate().keys() == {"held_out_loss", "gap_none", "token_similarity"}
    assert "gap_shuffled is left out" in capsys.readouterr().out


@torch.no_grad()
def test_of_held_out_pairs_the_reference_is_encoded_and_the_mask_counts(stage, monkeypatch):
    trained = stage(encoder={"decoder_dropout": 0.0}).eval()
    pixels, half = batch_of(3)["pixels"], torch.zeros(3, 1, 32, 32, dtype=torch.uint8)
    half[..., :16] = 255
    frames = 255 - pixels

    def figures(shown: torch.Tensor, **columns: torch.Tensor) -> dict[str, float]:
        monkeypatch.setattr(SeeCoderStage, "data", held_out(shown, 2, **columns))
        return trained.evaluate()

    errors, seen = trained.errors, []
    monkeypatch.setattr(trained, "errors", lambda batch, *rest: seen.append((batch, rest[2])) or errors(batch, *rest))
    figures(pixels, frames=frames, mask=half)
    contexts = torch.cat([context for _, context in seen[::3]])
    assert torch.equal(contexts, torch.cat([trained.encode({"pixels": part}, None)[0] for part in frames.split(2)]))
    assert torch.equal(torch.cat([batch["pixels"] for batch, _ in seen[::3]]), pixels)
    whole, masked = (figures(pixels, frames=frames, **more) for more in ({}, {"mask": half}))
    assert whole["held_out_loss"] != masked["held_out_loss"]
    assert whole["held_out_loss"] != figures(pixels)["held_out_loss"]
