"""The operations that a plan counts are those that torch counts on the real modules, and those of a count by hand."""

import pytest

from tests.behaviour.training import flops_by_hand


@pytest.mark.slow
def test_three_ways_of_counting_agree():
    rows = flops_by_hand.table()
    for row in rows:
        if row["by_hand"] is not None:
            assert row["counter"] == pytest.approx(row["by_hand"], rel=1e-9), row
        if row["known"] is not None and "released" not in row["part"]:
            assert row["counter"] == pytest.approx(row["known"], abs=2), row
    parts = {row["part"]: row["counter"] for row in rows}
    needed = ("backbone, forward", "queries, forward + backward", "UNet, forward + backward to the context")
    for attention in ("released", "spatial"):
        whole = sum(parts[name] for name in (*needed, f"decoder ({attention}), forward + backward"))
        assert flops_by_hand.per_picture(attention, cached=True) == pytest.approx(whole, rel=1e-6)
        online = whole + parts["autoencoder, encode"]
        assert flops_by_hand.per_picture(attention, cached=False) == pytest.approx(online, rel=1e-6)
