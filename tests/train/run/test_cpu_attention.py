import pytest
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from train.run.cpu_attention import float32_attention, is_slow_in_bfloat16, runs_on_cpu
from train.settings import RunSettings


def heads(*lengths: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, length, 16, generator=generator).to(dtype).requires_grad_() for length in lengths]


def test_attention_is_that_of_float32_rounded_once():
    query, key, value = heads(12, 40, 40)
    expected = functional.scaled_dot_product_attention(query, key, value).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        usual = functional.scaled_dot_product_attention(query, key, value)
        with float32_attention():
            found = functional.scaled_dot_product_attention(query, key, value)
    assert found.dtype == usual.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    assert not torch.equal(found, usual)


def test_gradients_have_no_rounding_but_that_of_the_result():
    query, key, value = heads(12, 40, 40)
    direction = torch.randn(2, 4, 12, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = torch.autograd.grad(
        functional.scaled_dot_product_attention(query, key, value), (query, key, value), direction.float()
    )
    with torch.autocast("cpu", torch.bfloat16), float32_attention():
        attended = functional.scaled_dot_product_attention(query, key, value)
    for one, other in zip(torch.autograd.grad(attended, (query, key, value), direction), expected, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_dtypes_are_left_alone(dtype):
    query, key, value = heads(8, 8, 8, dtype=dtype)
    expected = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    with float32_attention():
        assert torch.equal(functional.scaled_dot_product_attention(query, key, value, is_causal=True), expected)


def test_masks_and_weights_in_bfloat16():
    query, key, value = heads(8, 8, 8, dtype=torch.bfloat16)
    mask = torch.zeros(8, 8, dtype=torch.bfloat16).masked_fill(torch.ones(8, 8).triu(1).bool(), -torch.inf)
    with float32_attention():
        by_mask = functional.scaled_dot_product_attention(query, key, value, mask)
        causal = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert by_mask.dtype == torch.bfloat16
    torch.testing.assert_close(by_mask, causal, atol=0, rtol=0)


def test_what_is_computed_again_in_the_backward_pass_is_the_same():
    query, key, value = parts = heads(12, 12, 12)

    def attend(*of: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(*of)

    def gradients(again: bool) -> tuple[torch.Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            attended = checkpoint(attend, *parts, use_reentrant=False) if again else attend(query, key, value)
        return torch.autograd.grad(attended.float().square().sum(), parts)

    with float32_attention():
        for one, other in zip(gradients(again=False), gradients(again=True), strict=True):
            assert torch.equal(one, other)


def test_it_ends_with_its_block():
    fused = functional.scaled_dot_product_attention
    with float32_attention():
        assert functional.scaled_dot_product_attention is not fused
    assert functional.scaled_dot_product_attention is fused


@pytest.mark.parametrize(
    ("accelerator", "cuda", "expected"),
    [("cpu", True, True), ("auto", True, False), ("auto", False, True), ("gpu", False, False)],
)
def test_where_a_run_will_be(monkeypatch, accelerator, cuda, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert runs_on_cpu(RunSettings("runs/one", 1, accelerator=accelerator)) == expected


@pytest.mark.parametrize("checkpointed", [(), ("encoder", "unet")])
def test_a_run_on_the_cpu_has_it(settings, fit, monkeypatch, checkpointed):
    seen = set()
    attend = functional.scaled_dot_product_attention

    def note(*tensors, **options):
        seen.update(tensor.dtype for tensor in tensors[:3])
        return attend(*tensors, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", note)
    changes = {"run.precision": "bf16-mixed", "stage.init_args.gradient_checkpointing": list(checkpointed)}
    assert fit(settings(**{"run.max_steps": 1, "run.checkpoint_every": 1, **changes})) == 0
    assert seen == {torch.float32}


@pytest.mark.parametrize(
    ("precision", "accelerator", "has_instructions", "is_slow"),
    [
        ("bf16-mixed", "cpu", False, True),
        ("bf16-mixed", "cpu", True, False),
        ("32-true", "cpu", False, False),
        ("bf16-mixed", "gpu", False, False),
    ],
)
def test_a_cpu_without_instructions_for_bfloat16_is_known(
    monkeypatch: pytest.MonkeyPatch, precision: str, accelerator: str, has_instructions: bool, is_slow: bool
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_instructions)
    run = RunSettings(folder="run", max_steps=1, precision=precision, accelerator=accelerator)
    assert is_slow_in_bfloat16(run) is is_slow
