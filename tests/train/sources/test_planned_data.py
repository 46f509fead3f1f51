from pathlib import Path
from typing import Any

import pytest

from data.shards.reading.skips import TooManySkipped
from tests.fixtures.shards import write_pairs
from train.settings import RunSettings
from train.sources.planned_data import data_lines, held_out_lines, open_if_there
from train.sources.shard_data import ShardPictures

OPTIONS: dict[str, Any] = {
    "batch_size": 2,
    "num_workers": 0,
    "window": 2,
    "ceiling": 0.01,
    "held_out": 4,
    "held_out_world": False,
}
RUN = RunSettings("run", max_steps=6, devices=2)
ONE = RunSettings("run", max_steps=6)


def source(shards: Path | str, **more: Any) -> dict[str, Any]:
    return {**OPTIONS, "shards": str(shards), "held_out_shards": None, **more}


def shard_text(given: dict[str, Any], run: RunSettings = RUN) -> str:
    return "\n".join(data_lines(run, None, given, open_if_there(given), samples_a_step=8))


def test_shards_are_opened_where_they_are_there_and_only_there(shards):
    found = open_if_there(source(shards))
    assert found is not None
    assert sum(found.counts) == 24
    assert open_if_there(source("/not/built")) is None
    assert open_if_there({"pool_size": 3}) is None


@pytest.mark.parametrize("place", ["http://host/a", "ftp://host/a", "C:\\data\\a", "s3:/bucket/a", "a::pipe:cat x"])
def test_places_that_no_run_could_open_are_refused(place):
    with pytest.raises(ValueError, match="is neither a local path nor an https:// URL"):
        open_if_there(source(place))


def test_places_that_may_be_there_when_the_run_begins_are_not_looked_at():
    for place in ("https://host/a", "s3://bucket/a", "a::b", "/not/{built,there}/*.tar"):
        assert open_if_there(source(place)) is None


@pytest.mark.parametrize("shards", ["", []])
def test_no_shards_are_refused_as_in_the_run(shards):
    with pytest.raises(ValueError, match=r"`shards`=.* must be one place of shards or several"):
        held_out_texts({**source("x"), "shards": shards})
    with pytest.raises(ValueError, match=r"`shards`=.* must be one place of shards or several"):
        ShardPictures(2, shards)


def test_samples_readers_and_epochs_are_said(shards):
    assert shard_text(source(shards)) == (
        "data     24 samples in 3 shards: 1.5 for each of 2 readers (2 processes x 1), 2 open at a time; 2.00 epochs"
    )
    assert "/not/built: not looked at; 2 readers" in shard_text(source("/not/built"))
    assert shard_text({"pool_size": 24}) == "data     24 samples in memory, 2.0 epochs"


def test_fewer_shards_than_readers_are_impossible(shards):
    with pytest.raises(ValueError, match="3 shards are fewer than 4 readers"):
        shard_text(source(shards, num_workers=2))


def held_out_texts(given: dict[str, Any], kind: str = "train.sources.ShardPictures") -> list[str]:
    return list(held_out_lines(kind, given))


def test_what_is_held_out_is_said_and_checked(shards, held_out_shards):
    apart = source(shards, held_out_shards=str(held_out_shards))
    assert held_out_texts(apart) == [f"held out 4 samples of {held_out_shards}"]
    (line,) = held_out_texts(source(shards, held_out_shards=["/not/built"]))
    assert "/not/built not built yet" in line
    assert held_out_texts(source(shards)) == []
    with pytest.raises(ValueError, match="must hold other samples"):
        held_out_texts(source(shards, held_out_shards=str(shards)))
    with pytest.raises(ValueError, match="`window`=0"):
        held_out_texts(source(shards, window=0))
    assert held_out_texts(source(shards, window=0), "train.sources.WorldPictures") == []


def test_notations_of_shards_are_counted(shards):
    assert "data     16 samples in 2 shards" in shard_text(source(f"{shards}/{{00001..00002}}.tar"))
    assert "data     24 samples in 3 shards" in shard_text(source(f"{shards.parent}/*{shards.name}/*.tar"))
    assert "none: not looked at" in shard_text(source(f"{shards}::{shards}/none"))
    (line,) = held_out_texts(source("/not/built", held_out_shards=f"{shards}/*0.tar"))
    assert "not built" not in line
    with pytest.raises(ValueError, match="must hold other samples"):
        held_out_texts(source(shards, held_out_shards=f"{shards}/*0.tar"))


def test_addresses_of_files_are_looked_at(shards, held_out_shards):
    assert "data     24 samples in 3 shards" in shard_text(source(f"file://{shards}"))
    apart = source(f"file://{shards}", held_out_shards=f"file://{held_out_shards}", held_out=3)
    assert held_out_texts(apart) == [f"held out 3 samples of file://{held_out_shards}"]
    for one, other in ((shards, f"file://{shards}"), (f"file://{shards}", shards)):
        with pytest.raises(ValueError, match="must hold other samples"):
            held_out_texts(source(one, held_out_shards=str(other)))


def test_a_plan_counts_pairs_without_partner_and_names_them(tmp_path, caplog):
    odd = {2: {"mask.png": None}, 3: {"reference.png": None}}
    folder = write_pairs(tmp_path / "pairs" / "0.tar", 20, odd=odd).parent
    given = source(folder, reference="reference", mask="mask", ceiling=0.1)
    assert "20 samples" in shard_text(given, ONE)
    assert f"`{folder / '0.tar'}`: no `reference` (1 of 20, as with '003')" in caplog.text
    with pytest.raises(
        TooManySkipped, match=r"2 of 20 .*no `mask` \(1 of 20.*no `reference` \(1 of 20, as with '003'\)"
    ):
        shard_text(given | {"ceiling": 0.09}, ONE)


def test_a_plan_counts_what_is_lost_of_held_out_shards(shards, held_out_shards):
    given = source(shards, held_out_shards=str(held_out_shards), reference="reference")
    with pytest.raises(TooManySkipped, match=r"8 of 8 samples could not be read.*no `reference`"):
        held_out_texts(given)
