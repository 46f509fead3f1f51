"""What the training benchmark counts and compares."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


def workload(device: str) -> Any:
    from training_levers import Workload

    folder = Path("none")
    return Workload("x", folder, {}, 8, (1, 2), folder, folder, torch.device(device), workers=1, kept=True)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_lever_is_measured_alone_and_all_together(device: str):
    from training_levers import ALL, FOR_MEMORY, NAIVE, NAMES

    rows = workload(device).variants(set())
    naive = {name for name, on in asdict(rows.pop(NAIVE)).items() if on}
    assert naive == ({"autocast"} if device == "cuda" else set())
    together = {name for name, on in asdict(rows.pop(ALL)).items() if on}
    assert together == set(NAMES) - FOR_MEMORY
    alone = [{name for name, on in asdict(levers).items() if on} - naive for levers in rows.values()]
    assert sorted(map(sorted, alone)) == sorted([name] for name in set(NAMES) - naive)
    fewer = workload(device).variants({"compiled"}, leave_one_out=True)
    assert not any(levers.compiled for levers in fewer.values())
    assert sum(name.startswith("all but") for name in fewer) == len(NAMES) - 2 - len(naive)


def test_what_backward_keeps_is_counted_once_and_without_weights():
    from training_levers import kept_for_backward

    weight, inputs = torch.nn.Parameter(torch.ones(3, 5)), torch.ones(7, 3)
    with kept_for_backward({weight.data_ptr()}) as total:
        hidden = inputs @ weight  # keeps `inputs`, 84 bytes, and the weight
        hidden.exp().square().sum().backward()  # keep the one result of `exp`, 140 bytes
    assert sum(total.values()) == 84 + 140


@pytest.mark.slow
def test_three_ways_of_counting_agree():
    import training_flops

    for row in training_flops.table():
        if row["by_hand"] is not None:
            assert row["counter"] == pytest.approx(row["by_hand"], rel=1e-9), row
        if row["known"] is not None and "released" not in row["part"]:
            assert row["counter"] == pytest.approx(row["known"], abs=2), row
    parts = {row["part"]: row["counter"] for row in training_flops.table()}
    needed = ("backbone, forward", "queries, forward + backward", "UNet, forward + backward to the context")
    for attention in ("released", "spatial"):
        whole = sum(parts[name] for name in (*needed, f"decoder ({attention}), forward + backward"))
        assert training_flops.per_picture(attention, cached=True) == pytest.approx(whole, rel=1e-6)
        online = whole + parts["autoencoder, encode"]
        assert training_flops.per_picture(attention, cached=False) == pytest.approx(online, rel=1e-6)
