"""What is timed beside diffusers' own pipeline is the same work."""

import torch

from tests.behaviour.sampling.beside_stock import calls, measure


def test_both_pipelines_give_the_same_latents_and_are_timed():
    made = calls()
    ours, stock = (
        made[name](num_inference_steps=3, generator=torch.Generator().manual_seed(0)).images
        for name in ("ours", "stock")
    )
    assert torch.equal(ours, stock)
    rows = list(measure(turns=1))
    assert [row["steps"] for row in rows] == [1, 50]
    assert all(row[name] > 0 for row in rows for name in ("ours", "stock", "ratio"))
