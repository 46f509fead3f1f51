"""Digests depend on every byte, and on nothing else."""

import hashlib
from pathlib import Path

import torch

from seecoder.weights.digests import file_sha256, tensors_sha256


def test_a_files_digest_is_that_of_its_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"abc" * 100_000)
    two.write_bytes(b"")
    assert file_sha256(one) == hashlib.sha256(b"abc" * 100_000).hexdigest()
    assert file_sha256(two) == hashlib.sha256(b"").hexdigest()


def test_the_digest_of_several_files_is_that_of_their_bytes_in_order(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"abc")
    two.write_bytes(b"de")
    assert file_sha256(one, two) == hashlib.sha256(b"abcde").hexdigest()
    assert file_sha256(two, one) == hashlib.sha256(b"deabc").hexdigest()


def test_a_digest_of_tensors_depends_on_everything_but_their_order() -> None:
    tensors = {"a": torch.arange(4.0), "b": torch.ones(2, dtype=torch.int64)}
    digest = tensors_sha256(tensors)
    assert digest == tensors_sha256(dict(reversed(tensors.items())))
    for changed in (
        {**tensors, "a": torch.arange(4.0) + 1e-6},
        {**tensors, "a": torch.arange(4.0).reshape(2, 2)},
        {**tensors, "a": torch.arange(4.0).double()},
        {"c": tensors["a"], "b": tensors["b"]},
    ):
        assert tensors_sha256(changed) != digest
    assert tensors_sha256({"a": torch.zeros(0)})
    strided = torch.arange(8.0)[::2]
    assert tensors_sha256({"a": strided}) == tensors_sha256({"a": strided.clone()})
