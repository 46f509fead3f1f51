"""Compiled parts: the same weights under the same names, the same loss and gradients."""

from typing import Any

import pytest
import torch

from train.settings import OptimizerSettings
from train.stages.seecoder import SeeCoderStage


@pytest.fixture
def make(settings: Any) -> Any:
    def make(compiled: tuple[Any, ...]) -> SeeCoderStage:
        values = settings()["stage"]["init_args"]
        values.pop("optimizer")
        encoder = {**values.pop("encoder"), "decoder_dropout": 0.0}
        return SeeCoderStage(OptimizerSettings(lr=1e-3), encoder=encoder, compiled=compiled, **values).train()

    return make


@pytest.mark.heavy
def test_names_of_weights_stay(make):
    plain, compiled = make(()), make(("unet", "decoder"))
    assert list(plain.state_dict()) == list(compiled.state_dict())
    assert all(torch.equal(value, compiled.state_dict()[name]) for name, value in plain.state_dict().items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_loss_and_gradients_stay(make):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), generator=generator, dtype=torch.uint8)
    batch = {"pixels": pixels, "keys": torch.tensor([[0, 0], [0, 1]])}
    results = []
    for parts in ((), ("unet", "decoder")):
        stage = make(parts)
        loss = stage.loss(batch)
        loss.backward()
        results.append([loss.detach(), *(weight.grad for _, weight in stage.trained_parameters())])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-5)
