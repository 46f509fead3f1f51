"""Shards and caches that earlier versions wrote are read as these versions read them.

`tests/behaviour/made_before` holds seven scenes in two shards (`shards`), the same with moments and backbone maps
(`cached`), the autoencoder and the backbone that made these (`cache_models`), and what the version that wrote them read
from them (`read_from_shards.json`; sha256 of the bytes of every tensor of a batch). Nothing there is ever written anew.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from data.build import main as build
from data.shards.caching.cache_source import WithCaches, check_cache
from data.shards.caching.maps import MapsSource
from data.shards.caching.moments import MomentsSource
from data.shards.reading.square_image import SquareImage, Transform
from data.shards.shard_set import open_shards
from seecoder import SeeCoder
from tests.fixtures.shards import AttributedSquare, make_loader

MADE_BEFORE = Path(__file__).parents[1] / "made_before"
EXPECTED = json.loads((MADE_BEFORE / "read_from_shards.json").read_text())
FLIPPED = SquareImage(16, flip=True, seed=2)
BACKBONE: dict[str, Any] = {
    "backbone": "resnet10t",
    "backbone_args": {"out_indices": [1, 2, 3], "channels": [8, 8, 8, 8], "stem_width": 8},
}


def read_batches(folder: Path, transform: Transform) -> list[dict[str, Any]]:
    """Five batches in the form of the stored ones."""
    loader = make_loader(folder, transform, 3, rank=0, world_size=1, seed=1, window=2, batches=5)
    return [{name: summarise(name, column) for name, column in batch.items() if name != "valid"} for batch in loader]


def summarise(name: str, column: Any) -> Any:
    if not torch.is_tensor(column):
        return column
    if name in ("sample_id", "epoch"):
        return column.tolist()
    return hashlib.sha256(column.contiguous().numpy().tobytes()).hexdigest()


@pytest.fixture(scope="module")
def moments_source() -> MomentsSource:
    return MomentsSource.from_vae(
        AutoencoderKL.from_pretrained(MADE_BEFORE / "cache_models", subfolder="vae").eval(), 16
    )


@pytest.fixture(scope="module")
def maps_source() -> MapsSource:
    encoder = SeeCoder(**BACKBONE, context_dim=32)
    encoder.load_backbone_weights(str(MADE_BEFORE / "cache_models" / "backbone"))
    return MapsSource.from_encoder(encoder.eval(), 16)


@pytest.mark.parametrize("name", ["shards", "cached"])
def test_verify_finds_no_change(name: str):
    assert build(["verify", str(MADE_BEFORE / name)]) == 0


def test_the_same_command_goes_on_in_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = shutil.copytree(MADE_BEFORE / "shards", tmp_path / "shards")
    assert build(["world", str(folder), "--count", "7", "--size", "16", "--samples-per-shard", "4", "--seed", "3"]) == 0
    assert "2 of them from an earlier run" in capsys.readouterr().out
    names = {path.name for path in (MADE_BEFORE / "shards").iterdir()}
    assert {path.name for path in folder.iterdir()} == names
    manifest = json.loads((folder / "manifest.json").read_text())
    assert all(len(shard.pop("sizes")) > 0 for shard in manifest["shards"])  # of pictures, which came later
    assert manifest == json.loads((MADE_BEFORE / "shards" / "manifest.json").read_text())
    shards = names - {"manifest.json"}
    assert all((folder / name).read_bytes() == (MADE_BEFORE / "shards" / name).read_bytes() for name in shards)


def test_the_loader_gives_the_same_samples_in_the_same_order():
    assert read_batches(MADE_BEFORE / "shards", AttributedSquare(16)) == EXPECTED["shards"]


def test_moments_and_maps_have_the_same_numbers(moments_source: MomentsSource, maps_source: MapsSource):
    transform = WithCaches(FLIPPED, (moments_source, maps_source))
    assert read_batches(MADE_BEFORE / "cached", transform) == EXPECTED["cached"]


def test_the_models_that_made_a_cache_are_still_known_as_its_makers(
    moments_source: MomentsSource, maps_source: MapsSource
):
    assert moments_source.digest == EXPECTED["moments_digest"]
    assert maps_source.digest == EXPECTED["maps_digest"]
    shards = open_shards(MADE_BEFORE / "cached")
    check_cache(shards, FLIPPED, moments_source)
    check_cache(shards, FLIPPED, maps_source)
