"""Contexts as values: combining, weighing, keeping."""

import pytest
import torch

from seecoder.encoder.context import combine_contexts, is_context_file, load_context, normalise_weights, save_context
from seecoder.weights.safetensors_files import WeightsError, write_safetensors


@pytest.fixture
def two():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn((1, 6, 8), generator=generator) for _ in range(2)]


def test_average_is_weighted(two):
    torch.testing.assert_close(combine_contexts(two, [1, 3]), 0.25 * two[0] + 0.75 * two[1])
    torch.testing.assert_close(combine_contexts(two), (two[0] + two[1]) / 2)
    torch.testing.assert_close(combine_contexts(two, [5, 0]), two[0])


def test_average_of_half_precision_is_taken_in_float32(two):
    contexts = [context.half() for context in two] * 50
    found = combine_contexts(contexts)
    assert found.dtype == torch.float16
    expected = torch.stack([context.double() for context in contexts]).mean(dim=0)
    assert (found.double() - expected).abs().max() <= 2**-11 * expected.abs().max()


def test_concatenation_puts_tokens_side_by_side(two):
    found = combine_contexts(two, combine="concatenate")
    assert torch.equal(found, torch.cat(two, dim=1))
    with pytest.raises(ValueError, match="`weights` have no effect"):
        combine_contexts(two, [1, 2], "concatenate")


@pytest.mark.parametrize("weights", [[1.0], [1, -1], [0, 0], [float("nan"), 1], [float("inf"), 1]])
def test_weights_that_cannot_be_used(weights):
    with pytest.raises(ValueError, match="`weights`"):
        normalise_weights(weights, 2)


def test_unlike_contexts_are_refused(two):
    with pytest.raises(ValueError, match="different shapes"):
        combine_contexts([two[0], two[1][:, :5]])
    with pytest.raises(ValueError, match="empty"):
        combine_contexts([])
    with pytest.raises(ValueError, match="`combine`='sum'"):
        combine_contexts(two, combine="sum")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_contexts_come_back_bit_for_bit(two, dtype, tmp_path):
    context, pooled = torch.cat(two).to(dtype), torch.ones(2, 3, dtype=dtype)
    save_context(tmp_path / "a.safetensors", context, pooled, {"sources": "x"})
    saved = load_context(tmp_path / "a.safetensors")
    assert torch.equal(saved.context, context)
    assert torch.equal(saved.pooled, pooled)
    assert saved.metadata["sources"] == "x"
    assert is_context_file(tmp_path / "a.safetensors")
    save_context(tmp_path / "b.safetensors", context[0])
    assert load_context(tmp_path / "b.safetensors").context.shape == (1, 6, 8)
    assert load_context(tmp_path / "b.safetensors").pooled is None


def test_other_files_are_told_apart(tmp_path):
    write_safetensors(tmp_path / "other.safetensors", {"context": torch.zeros(1, 2, 3)}, {})
    assert not is_context_file(tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="holds no contexts"):
        load_context(tmp_path / "other.safetensors")
    for name, content in (
        ("short.safetensors", b"\x00"),
        ("huge.safetensors", b"\xff" * 64),
        ("text.safetensors", b"x" * 64),
    ):
        (tmp_path / name).write_bytes(content)
        assert not is_context_file(tmp_path / name)
    assert not is_context_file(tmp_path / "missing.safetensors")
    assert not is_context_file(tmp_path)


def test_wrong_ranks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`context`"):
        save_context(tmp_path / "a.safetensors", torch.zeros(3))
    with pytest.raises(ValueError, match="`pooled`"):
        save_context(tmp_path / "a.safetensors", torch.zeros(2, 3, 4), torch.zeros(1, 4))
    assert list(tmp_path.iterdir()) == []
