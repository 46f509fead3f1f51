"""What a few timed calls say of a whole run: every call is counted, every kind is timed by itself."""

import pytest
import torch

from scripts.benchmarks.random_networks import small_unet
from scripts.benchmarks.timed_network import TimedNetwork, layer_state
from seecoder.sampling.methods.scalecrafter.redilation import redilated


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return small_unet((8, 8), side=8, groups=4)


def call(timed: TimedNetwork, side: int) -> torch.Tensor:
    return timed(torch.randn(2, 4, side, side), torch.tensor(5), torch.zeros(2, 3, 128))


@torch.no_grad()
def test_all_calls_are_counted_and_the_first_ones_run(network: torch.nn.Module):
    timed = TimedNetwork(network, calls=2)
    outputs = [call(timed, 8) for _ in range(5)] + [call(timed, 16)]
    assert [bool(output.any()) for output in outputs] == [True, True, True, False, False, True]
    assert timed.evaluations(8) == 5 + 4
    assert list(timed._counts.values()) == [5, 1]
    small, large = timed._timed.values()
    assert timed.seconds == pytest.approx(5 * sorted(small[1:])[0] / 2 + 5 * max(small[1:]) / 2 + large[0])


@torch.no_grad()
def test_changed_layers_are_a_kind_of_their_own(network: torch.nn.Module):
    plain = layer_state(network)
    conv = network.get_submodule("mid_block.resnets.0.conv1")
    assert isinstance(conv, torch.nn.Conv2d)
    with redilated(conv, (2.0, 2.0)):
        assert layer_state(network) != plain
    assert layer_state(network) == plain
