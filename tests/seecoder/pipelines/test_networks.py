"""The networks as callables: fewer rows at a time when memory runs out, and codecs that invert each other's scaling."""

from types import SimpleNamespace

import pytest
import torch

from seecoder import SeeCoderPipeline
from seecoder.pipelines.networks import HalvedOnDemand, bring_to_device


class Greedy:
    """A network that fits `limit` rows into memory and counts its calls."""

    def __init__(self, limit):
        self.limit = limit
        self.rows = []

    def __call__(self, latents, timestep, context, *, extra, nested):
        assert len(latents) == len(context) == len(extra) == len(nested["inner"])
        if len(latents) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.rows.append(len(latents))
        return latents + context + extra + nested["inner"] + timestep


@pytest.mark.parametrize(("limit", "expected"), [(8, [7]), (4, [3, 3, 1]), (1, [1] * 7)])
def test_rows_are_halved_until_they_fit(limit, expected):
    network = Greedy(limit)
    notes = []
    halved = HalvedOnDemand(network, "UNet", notes)
    values = [torch.randn(7, 2) for _ in range(4)]
    given = {"extra": values[2], "nested": {"inner": values[3]}}
    output = halved(values[0], torch.tensor(5.0), values[1], **given)
    torch.testing.assert_close(output, sum(values) + 5.0)
    assert network.rows == expected
    assert bool(notes) == (limit < 7)
    halved(values[0], torch.tensor(5.0), values[1], **given)
    assert network.rows == expected * 2  # what worked is kept; nothing is tried again


def test_a_single_row_that_does_not_fit_is_a_clear_error():
    network, two = HalvedOnDemand(Greedy(0), "UNet", []), torch.zeros(2, 1)
    with pytest.raises(RuntimeError, match=r"no memory left for one row .* in the UNet"):
        network(two, torch.tensor(0.0), two, extra=two, nested={"inner": two})


def test_lists_of_residuals_are_split_and_joined():
    def network(latents, timestep):
        if len(latents) > 1:
            raise torch.OutOfMemoryError
        return {"down": [latents, latents * 2], "middle": latents * 3}

    output = HalvedOnDemand(network, "ControlNet", [])(torch.arange(3.0)[:, None], torch.tensor(0.0))
    torch.testing.assert_close(output["down"][1], torch.tensor([[0.0], [2.0], [4.0]]))
    torch.testing.assert_close(output["middle"], torch.tensor([[0.0], [3.0], [6.0]]))


def test_the_picture_is_the_same_with_little_memory(parts, picture):
    pipe = SeeCoderPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)

    def make():
        return pipe(picture, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt")

    plenty = make()

    def hook(module, given):
        if len(given[0]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = pipe.unet.register_forward_pre_hook(hook)
    try:
        little = make()
    finally:
        handle.remove()
    torch.testing.assert_close(little.images, plenty.images, atol=1e-5, rtol=0)
    assert "the UNet ran out of memory at 2 rows" in little.notes[0]
    assert plenty.notes == []


def test_an_offloaded_module_is_brought_by_its_hook():
    brought = []
    module = torch.nn.Linear(1, 1)
    bring_to_device(module)
    module._hf_hook = SimpleNamespace(pre_forward=brought.append)
    bring_to_device(module)
    assert brought == [module]
