"""What of a layer a patch has to change, whatever an adapter or a quantisation has put around it."""

from contextlib import suppress

import pytest
import torch
from torch import nn

from seecoder.sampling.methods.convolutions import convolutions_in, convolved, convolving


class Packed(nn.Module):
    """Stands for a convolution whose weight is packed out of reach."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs


def adapted(kind: str) -> nn.Module:
    """A convolution under an adapter of peft."""
    peft = pytest.importorskip("peft")
    network = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))
    peft.inject_adapter_in_model(getattr(peft, kind)(target_modules=["0"], r=2), network)
    return network[0]


def test_a_plain_layer_is_changed_itself() -> None:
    conv = nn.Conv2d(4, 4, 3)
    assert convolutions_in(conv, "mid") == [conv]


def test_under_a_lora_the_layer_and_the_first_half_are_changed() -> None:
    layer = adapted("LoraConfig")
    assert convolutions_in(layer, "mid") == [layer.base_layer, layer.lora_A["default"]]


def test_adapters_that_convolve_out_of_reach_are_refused_unless_they_are_merged() -> None:
    layer = adapted("LoHaConfig")
    with pytest.raises(ValueError, match=r"`unet`: its layer mid.conv1 is a peft\..*loha.*Conv2d, which this method"):
        convolutions_in(layer, "mid.conv1")
    layer.merge()
    assert convolutions_in(layer, "mid.conv1") == [layer.base_layer]


def test_layers_whose_weight_is_packed_away_are_refused() -> None:
    with pytest.raises(ValueError, match=r"its layer mid is a .*Packed, which this method cannot change"):
        convolutions_in(Packed(), "mid")


def test_a_layer_computes_the_other_function_for_a_while_and_is_then_as_before() -> None:
    conv, values = nn.Conv2d(2, 2, 3), torch.randn(1, 2, 5, 5)
    before, plain = dict(vars(conv)), conv(values)

    def doubled(inputs, weight, bias):
        assert weight is conv.weight
        return 2.0 * nn.functional.conv2d(inputs, weight, bias)

    def negative(inputs, weight, bias):
        return -nn.functional.conv2d(inputs, weight, bias)

    with suppress(KeyError), convolving(conv, doubled):
        assert torch.equal(conv(values), 2.0 * plain)
        with convolving(conv, negative):
            assert torch.equal(conv(values), -plain)
        assert torch.equal(conv(values), 2.0 * plain)
        raise KeyError
    assert vars(conv) == before
    assert torch.equal(conv(values), plain)


@pytest.mark.parametrize("mode", ["zeros", "circular", "replicate"])
def test_a_layer_keeps_its_way_of_padding(mode) -> None:
    conv = nn.Conv2d(2, 4, (3, 5), stride=(2, 1), padding=(1, 4), dilation=(1, 2), padding_mode=mode, groups=2)
    values = torch.randn(1, 2, 9, 8)
    again = convolved(conv, values, conv.weight, conv.bias, stride=(2, 1), padding=(1, 4), dilation=(1, 2))
    assert torch.equal(again, conv(values))
