"""Claims about a training, measured: how tokens begin, and what half precision costs attention on a CPU, and gradients.

python -m tests.behaviour.training.claims          # prints the rows, at the published size
"""

import statistics
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from torch.nn import functional

from data.world.conditioner import BASE
from seecoder.encoder.query_transformer import INITIAL_BRANCH
from train.run.cpu_attention import float32_attention
from train.settings import OptimizerSettings
from train.stages import seecoder as seecoder_stage
from train.stages.context_gaps import token_similarity
from train.stages.encoder_weights import seeded_encoder
from train.stages.seecoder import SeeCoderStage

ROOT = Path(__file__).resolve().parents[3]
SIDE = 512  # of the picture whose maps' shapes are taken
SEQUENCES = ((64, 64), (64, 12), (12, 12))  # queries and keys


@torch.no_grad()
def token_beginnings(config: Mapping[str, Any] | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Mean cosine between the tokens of a group with initial weights, by what the queries read and how they begin.

    Args:
        config: Arguments of `SeeCoder`; None for the published size, with the released decoder.
        seed: Of weights and maps.
    """
    encoder = seeded_encoder(dict(config or {"decoder_attention": "released"}), seed).eval()
    queries: Any = encoder.query_transformer
    groups = {"global": slice(0, queries.num_global), "local": slice(queries.num_global, None)}
    generator = torch.Generator().manual_seed(seed)
    maps = [
        torch.randn(level.shape, generator=generator) for level in encoder.compute_maps(torch.zeros(1, 3, SIDE, SIDE))
    ]
    decoded = encoder.decoder(maps)
    levels = {
        "random maps, decoded": decoded,
        "random levels": [torch.randn(level.shape, generator=generator) for level in decoded],
    }
    rows = []
    for branches, factor in ((f"at {INITIAL_BRANCH:g}, as here", 1.0), ("as Xavier draws them", 1 / INITIAL_BRANCH)):
        for block in queries.blocks:
            block.self_attention.out.weight.mul_(factor)
            block.feed_forward.linear2.weight.mul_(factor)
        for read, given in levels.items():
            tokens = queries(given)
            found = {group: token_similarity(tokens[:, part]) for group, part in groups.items()}
            rows.append({"branches": branches, "read": read, **found})
    return rows


def half_gradients(side: int = 256, pictures: int = 8, accumulate: int = 4) -> list[dict[str, Any]]:
    """Relative error of the gradients through the world's base held in half precision, against float32.

    Args:
        side: Of the pictures, which are noise.
        pictures: How many.
        accumulate: Micro-batches by whose number the loss is divided.
    """
    exact = _gradients("float32", side, pictures, accumulate)
    found = {dtype: _gradients(dtype, side, pictures, accumulate) for dtype in ("float16", "bfloat16")}
    with mock.patch.object(seecoder_stage, "run_frozen", _unscaled):
        found["float16, as it is"] = _gradients("float16", side, pictures, accumulate)
    return [{"frozen": name, "error": float((value - exact).norm() / exact.norm())} for name, value in found.items()]


def _unscaled(network: Any, inputs: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    return network(*(value.to(dtype) for value in inputs))


def _gradients(dtype: Any, side: int, pictures: int, accumulate: int) -> torch.Tensor:
    encoder = yaml.safe_load((ROOT / "configs" / "world_seecoder.yaml").read_text())["stage"]["init_args"]["encoder"]
    stage = SeeCoderStage(OptimizerSettings(), str(BASE), encoder, str(BASE / "backbone"), frozen_dtype=dtype).train()
    draws = torch.rand(pictures, 3, side, side, generator=torch.Generator().manual_seed(0))
    keys = torch.stack([torch.zeros(pictures, dtype=torch.int64), torch.arange(pictures)], dim=1)
    (stage.loss({"pixels": (255 * draws).byte(), "keys": keys}) / accumulate).backward()
    return torch.cat([weight.grad.flatten() for _, weight in stage.trained_parameters() if weight.grad is not None])


def attention_backward(pictures: int = 32, heads: int = 4, width: int = 32, turns: int = 60) -> list[dict[str, Any]]:
    """How many times longer fused attention's backward pass takes under autocast than with `float32_attention`.

    One thread; turns of both are interleaved, and of each the median counts.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_compare(queries, keys, (pictures, heads, width), turns) for queries, keys in SEQUENCES]
    finally:
        torch.set_num_threads(threads)


def _compare(queries: int, keys: int, sizes: tuple[int, int, int], turns: int) -> dict[str, Any]:
    pictures, heads, width = sizes
    inputs = [torch.randn(pictures, heads, count, width, requires_grad=True) for count in (queries, keys, keys)]
    times: dict[str, list[float]] = {"bfloat16": [], "float32": []}
    for _ in range(turns):
        for name, found in times.items():
            found.append(_backward_seconds(inputs, float32=name == "float32"))
    half, full = (1000 * statistics.median(times[name]) for name in ("bfloat16", "float32"))
    return {"queries": queries, "keys": keys, "bfloat16_ms": half, "float32_ms": full, "times": half / full}


def _backward_seconds(inputs: list[torch.Tensor], float32: bool) -> float:
    with float32_attention() if float32 else nullcontext(), torch.autocast("cpu", torch.bfloat16):
        query, key, value = (tensor.to(torch.bfloat16) for tensor in inputs)  # what layers under autocast give
        output = functional.scaled_dot_product_attention(query, key, value)  # which `float32_attention` replaces
    gradient = torch.ones_like(output)
    start = time.perf_counter()
    torch.autograd.grad(output, inputs, gradient)
    return time.perf_counter() - start


if __name__ == "__main__":
    print(*token_beginnings() + attention_backward() + half_gradients(), sep="\n")
