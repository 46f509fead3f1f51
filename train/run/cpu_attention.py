"""Attention of a training on a CPU: in float32 also where all else is bfloat16, because its backward pass is faster so.

PyTorch 2.14's fused attention rounds to bfloat16 under autocast. On the CPU its backward pass is then slower than in
float32, the more so the shorter the sequences are: 5 times for 64 queries of 64 keys, 9 times for 64 of 12, 12 times
for 12 of 12 (`python -m tests.behaviour.training.claims`: 32 pictures, 4 heads of 32, two threads, AVX512-BF16). A
query transformer is made of such.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from seecoder.replacing import replaced
from train.settings import RunSettings

_HALF = (torch.bfloat16, torch.float16)


def runs_on_cpu(run: RunSettings) -> bool:
    """Whether Lightning will find nothing but the CPU."""
    if run.accelerator != "auto":
        return run.accelerator == "cpu"
    return not torch.cuda.is_available() and not torch.backends.mps.is_available()


def is_slow_in_bfloat16(run: RunSettings) -> bool:
    """Whether a run computes in bfloat16 on a CPU that has no instructions for it, which takes ten times as long."""
    is_half = run.precision.startswith("bf16") and runs_on_cpu(run)
    return is_half and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


@contextmanager
def float32_attention() -> Iterator[None]:
    """Compute attention on the CPU in float32, and round its result as it would have been.

    The function itself is replaced: a torch function mode would end where the backward pass begins, and parts that are
    checkpointed would compute something else there than they did before.
    """
    fused = functional.scaled_dot_product_attention

    def attend(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *more: Any, **options: Any
    ) -> Tensor:
        on_cpu = query.device.type == "cpu"
        dtype = torch.get_autocast_dtype("cpu") if on_cpu and torch.is_autocast_enabled("cpu") else query.dtype
        if not on_cpu or dtype not in _HALF:
            return fused(query, key, value, attn_mask, *more, **options)
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.float()
        with torch.autocast("cpu", enabled=False):
            return fused(query.float(), key.float(), value.float(), attn_mask, *more, **options).to(dtype)

    with replaced(functional, scaled_dot_product_attention=attend):
        yield
