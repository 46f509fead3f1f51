"""A small soak: every fault planted among 3,000 samples, and each counted exactly."""

from pathlib import Path

import pytest

from data.shards import index as shard_index
from tests.behaviour.shards.soak import plant, soak


@pytest.mark.filterwarnings("ignore:samples have")
def test_every_planted_fault_is_counted_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shard_index.time, "sleep", lambda _: None)
    planted = plant(tmp_path / "shards", shards=30, every=30)
    assert planted.samples == 3000
    assert len(planted.lost) == 8
    assert soak(tmp_path / "shards", planted)[0] == []
