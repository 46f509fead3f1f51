"""A float16 network whose gradients are far below what float16 can hold."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import train.frozen.half_gradients
from tests.fixtures.training import batch_of
from train.frozen.half_gradients import run_frozen


def gradients_of(dtype: torch.dtype, size: float, rows: slice = slice(None)) -> Tensor:
    """Gradients of a mean square times `size` by the inputs of a small network."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 8)).requires_grad_(False)
    inputs = torch.randn(4, 8)[rows].requires_grad_()
    target = torch.randn(4, 8)[rows]
    output = run_frozen(network.to(dtype), [inputs], dtype).float()
    ((output - target).square().mean(1).sum() * size).backward()
    assert inputs.grad is not None
    return inputs.grad


@pytest.mark.parametrize("size", [1e-12, 1e-6, 1.0, 1e6])
def test_gradients_of_any_size_are_those_of_float32(size: float) -> None:
    expected, found = gradients_of(torch.float32, size), gradients_of(torch.float16, size)
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < 2e-3


def test_a_samples_gradient_is_its_own() -> None:
    together = gradients_of(torch.float16, 1e-9)
    for row in range(4):
        assert torch.equal(gradients_of(torch.float16, 1e-9, slice(row, row + 1))[0], together[row])


def test_what_overflows_goes_in_again_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = gradients_of(torch.float16, 1e-6)
    monkeypatch.setattr(train.frozen.half_gradients, "_LARGEST", 21)
    found = gradients_of(torch.float16, 1e-6)
    assert float((found - expected).norm() / expected.norm()) < 1e-3
    monkeypatch.setattr(train.frozen.half_gradients, "_LOWERED", (0,))
    assert not bool(gradients_of(torch.float16, 1e-6).isfinite().all()), "or the test shows nothing"


def test_a_loss_that_is_no_number_stays_so() -> None:
    assert not bool(gradients_of(torch.float16, float("nan")).isfinite().any())


def test_samples_without_a_gradient_have_none() -> None:
    assert float(gradients_of(torch.float16, 0.0).abs().max()) == 0


@pytest.mark.parametrize("checkpointed", [(), ("unet",)])
def test_a_training_through_float16_has_the_gradients_of_float32_however_many_micro_batches(
    stage: Any, checkpointed: tuple[str, ...]
) -> None:
    def gradients(dtype: str, count: int) -> Tensor:
        trained = stage(
            frozen_dtype=dtype, encoder={"decoder_dropout": 0.0}, gradient_checkpointing=checkpointed
        ).train()
        (trained.loss(batch_of(4)) / count).backward()
        return torch.cat([weight.grad.flatten() for _, weight in trained.trained_parameters()]) * count

    expected, found = gradients("float32", 1), gradients("float16", 1)
    error, of_bfloat16 = (float((other - expected).norm()) for other in (found, gradients("bfloat16", 1)))
    assert error < 0.25 * of_bfloat16, "it has three bits more"
    assert torch.equal(gradients("float16", 2**12), found)
