"""Weights load into a module if every name and shape fits; otherwise nothing changes and the reason is told."""

import pytest
import torch
from torch import nn

from seecoder.weights.safetensors_files import WeightsError
from seecoder.weights.strict_loading import load_strict


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 5))


def test_fitting_weights_load():
    source, target = module(), module()
    nn.init.zeros_(target[0].weight)
    load_strict(target, source.state_dict(), source="w")
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor)


def test_missing_unexpected_and_misshaped_come_in_one_message_and_nothing_changes():
    target = module()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    tensors = {name: tensor + 1 for name, tensor in target.state_dict().items()}
    del tensors["0.weight"], tensors["1.running_mean"]
    tensors |= {
        "extra.a": torch.zeros(1),
        "extra.b": torch.zeros(1),
        "extra.c": torch.zeros(1),
        "extra.d": torch.zeros(1),
    }
    tensors["2.weight"] = torch.zeros(5, 7)
    tensors["1.num_batches_tracked"] = torch.tensor(1.5)
    with pytest.raises(WeightsError) as caught:
        load_strict(target, tensors, source="a/b.safetensors")
    message = str(caught.value)
    assert "`a/b.safetensors` does not fit Sequential" in message
    assert "2 weights are missing (0.weight, 1.running_mean)" in message
    assert "4 are unexpected (extra.a, extra.b, extra.c, ...)" in message
    assert "2 do not fit (1.num_batches_tracked is () where () integer is needed, 2.weight is (5, 7) where" in message
    assert "\n" not in message
    for name, tensor in before.items():
        assert torch.equal(target.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop("0.bias"), r"1 weight is missing \(0.bias\)\.$"),
        (lambda tensors: tensors.update(more=torch.zeros(2)), r"1 is unexpected \(more\)\.$"),
        (lambda tensors: tensors.update({"0.bias": torch.zeros(9)}), r"1 does not fit \(0.bias is \(9,\) where \(4,\)"),
    ],
)
def test_one_wrong_key(change, told):
    tensors = dict(module().state_dict())
    change(tensors)
    with pytest.raises(WeightsError, match=told):
        load_strict(module(), tensors, source="w")


def test_renamed_key_is_missing_and_unexpected():
    tensors = {name.replace("2.", "3."): tensor for name, tensor in module().state_dict().items()}
    with pytest.raises(WeightsError, match=r"2 weights are missing .*; 2 are unexpected"):
        load_strict(module(), tensors, source="w")


def test_parameters_keep_their_dtype_and_meta_modules_take_the_tensors():
    tensors = module().state_dict()
    half = module().half()
    load_strict(half, tensors, source="w")
    assert half[0].weight.dtype == torch.float16
    with torch.device("meta"):
        empty = module()
    load_strict(empty, tensors, source="w")
    assert torch.equal(empty[2].bias, tensors["2.bias"])
    assert not any(tensor.is_meta for tensor in empty.state_dict().values())
