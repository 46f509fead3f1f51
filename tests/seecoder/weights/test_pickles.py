"""Pickles are read as tensors where a user allows it, and run nothing even then."""

import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from seecoder.weights.pickles import read_pickle_allowed
from seecoder.weights.safetensors_files import WeightsError
from tests.fixtures.pickles import write_evil_pickle


@pytest.mark.parametrize("kind", ["zip", "old", "2", "4"])
def test_allowed_pickles_still_run_nothing(tmp_path, kind):
    witness = tmp_path / "witness"
    write_evil_pickle(tmp_path / "w.pth", witness, kind)
    with pytest.raises(WeightsError, match="restricted unpickler, and nothing less safe is tried"):
        read_pickle_allowed(tmp_path / "w.pth")
    assert not witness.exists()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {"model": {"state_dict": state}},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_allowed_pickles_are_unwrapped(tmp_path, wrap, zipped):
    state = {"a": torch.rand(2, 3), "b": nn.Parameter(torch.rand(4))}
    torch.save(wrap(state), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    again = read_pickle_allowed(tmp_path / "w.pth")
    assert {name: tensor.tolist() for name, tensor in again.items()} == {k: v.tolist() for k, v in state.items()}
    assert not any(tensor.requires_grad for tensor in again.values())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"a": torch.zeros(2), "step": 7}, "'step' is a int"),
        ({"a": {"b": torch.zeros(2)}}, "'a' is a dict"),
        ([torch.zeros(2)], "holds a list"),
        ({}, "holds a dict"),
        ({3: torch.zeros(2)}, "3 is a Tensor"),
        ({"a": torch.zeros(1).expand(10**9)}, "more than the file stores"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "more than dense tensors"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*sparse.*")
def test_allowed_pickles_may_hold_nothing_but_tensors(tmp_path, content, reason):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=reason):
        read_pickle_allowed(tmp_path / "w.pth")


def test_allowed_pickles_that_unpack_to_gigabytes_are_refused(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as source, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as bomb:
        for member in source.namelist():
            bomb.writestr(member, source.read(member), zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="compressed archive"):
        read_pickle_allowed(tmp_path / "bomb.pth")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02", b"hello", b"\x80\x04\x95" + bytes(40)])
def test_damaged_pickles(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(WeightsError):
        read_pickle_allowed(tmp_path / "w.pth")


def test_the_callback_that_published_checkpoints_mention_is_no_hindrance(tmp_path, monkeypatch):
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = ModuleType(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    monkeypatch.setitem(sys.modules, name, module)
    content = {"state_dict": {"a": torch.ones(2)}, "callbacks": {module.ModelCheckpoint: {"best": torch.zeros(1)}}}
    torch.save(content, tmp_path / "w.ckpt")
    monkeypatch.delitem(sys.modules, name)
    before = list(torch.serialization.get_safe_globals())
    assert read_pickle_allowed(tmp_path / "w.ckpt")["a"].tolist() == [1, 1]
    assert list(torch.serialization.get_safe_globals()) == before


def test_the_reason_is_told_without_advice_to_read_unsafely(tmp_path):
    torch.save({"x": Path("x")}, tmp_path / "w.ckpt")
    with pytest.raises(WeightsError, match=r"Unsupported global: GLOBAL pathlib\S+$"):
        read_pickle_allowed(tmp_path / "w.ckpt")
