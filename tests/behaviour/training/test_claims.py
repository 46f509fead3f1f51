"""Claims about parts of a training can be measured, and the measurement tells one case from the other."""

from pathlib import Path

import pytest
import torch

from tests.behaviour.training import claims

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"
TINY = {
    "backbone": "resnet10t",
    "backbone_args": {"out_indices": [1, 2, 3], "channels": [8, 8, 8, 8], "stem_width": 8},
    "context_dim": 64,
    "num_heads": 2,
    "decoder_layers": 1,
    "decoder_ffn_dim": 32,
    "query_layers": 9,
    "query_ffn_dim": 128,
    "num_global_queries": 4,
    "num_local_queries": 8,
}


def test_tokens_begin_apart_with_small_branches_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(claims, "SIDE", 64)
    rows = claims.token_beginnings(TINY)
    assert [row["read"] for row in rows] == 2 * ["random maps, decoded", "random levels"]
    ours, xavier = rows[:2], rows[2:]
    for small, large in zip(ours, xavier, strict=True):
        assert small["branches"] != large["branches"]
        assert small["global"] < 0.2 < 0.5 < large["global"]
    assert rows == claims.token_beginnings(TINY)


def test_both_ways_of_attention_are_timed_with_their_own_function(monkeypatch: pytest.MonkeyPatch):
    used: list[torch.dtype] = []
    original = torch.nn.functional.scaled_dot_product_attention

    def spy(query, *rest, **options):
        used.append(query.dtype)
        return original(query, *rest, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    threads = torch.get_num_threads()
    rows = claims.attention_backward(pictures=1, heads=1, width=8, turns=2)
    assert torch.get_num_threads() == threads
    assert used == len(rows) * 2 * [torch.bfloat16, torch.float32]
    for row in rows:
        assert row["times"] == row["bfloat16_ms"] / row["float32_ms"] > 0
