"""Tensors as bytes in a sample, bound to what made them."""

import pytest
import torch

from data.shards.caching.tensor_members import get_tensor, pack_rows, pack_tensors, unpack_tensors
from data.shards.reading.square_image import UnusableSample

FORM = "seecoder.things.1"


def test_members_give_back_digest_and_tensors():
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(1, dtype=torch.float16)}
    digest, found = unpack_tensors(pack_tensors(tensors, FORM, "d" * 64), FORM)
    assert digest == "d" * 64
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_row_that_is_not_finite_has_no_member():
    columns = {"a": torch.tensor([[1.0], [2.0], [3.0]]), "b": torch.tensor([[1.0], [float("inf")], [float("nan")]])}
    first, second, third = pack_rows(columns, FORM, "d")
    assert first == pack_tensors({"a": torch.tensor([1.0]), "b": torch.tensor([1.0])}, FORM, "d")
    assert second is third is None


@pytest.mark.parametrize("content", [b"", b"rubbish", pack_tensors({"a": torch.ones(1)}, "seecoder.things.2", "d")])
def test_other_bytes_are_a_bad_sample(content: bytes):
    with pytest.raises(UnusableSample, match="its things do not parse") as caught:
        unpack_tensors(content, FORM)
    assert caught.value.reason == "bad things"


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [("b", torch.float32, (2,)), ("a", torch.float16, (2,)), ("a", torch.float32, (1, 2))],
)
def test_a_tensor_that_is_not_as_expected_is_a_bad_sample(name: str, dtype: torch.dtype, shape: tuple[int, ...]):
    tensors = {"a": torch.ones(2)}
    assert get_tensor(tensors, "a", torch.float32, (2,), "things") is tensors["a"]
    with pytest.raises(UnusableSample, match=f"lack `{name}`"):
        get_tensor(tensors, name, dtype, shape, "things")
