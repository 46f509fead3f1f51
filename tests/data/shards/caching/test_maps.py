"""Backbone maps as a member of a sample: what they are, what binds them, what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import AutoencoderKL

from data import cache
from data.shards.caching.cache_source import WithCaches, check_cache
from data.shards.caching.maps import MapsSource, map_column
from data.shards.manifest import Shard
from data.shards.reading.shard_reader import ShardReader
from data.shards.reading.square_image import SquareImage, UnusableSample
from data.shards.shard_set import LocatedShard, ShardSet, open_shards
from seecoder import SeeCoder
from seecoder.weights.safetensors_files import WeightsError, write_safetensors

SIZE = 32
ENCODER: dict[str, Any] = {
    "backbone": "resnet10t",
    "backbone_args": {"out_indices": [1, 2, 3], "channels": [8, 8, 8, 8], "stem_width": 8},
    "context_dim": 16,
    "num_heads": 2,
    "decoder_layers": 1,
    "decoder_ffn_dim": 16,
    "query_layers": 3,
    "query_ffn_dim": 16,
    "num_global_queries": 1,
    "num_local_queries": 2,
    "image_mean": (0.5, 0.4, 0.3),
}
VIT = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_args": {"embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": SIZE},
}


def tiny_encoder(**changes: Any) -> SeeCoder:
    torch.manual_seed(0)
    return SeeCoder(**{**ENCODER, **changes}).eval()


@pytest.mark.parametrize("changes", [{}, {"pooled_dim": 4, "position_aware": True}, VIT])
def test_context_of_maps_is_the_context_of_the_picture(changes: dict[str, Any]):
    encoder, pixels = tiny_encoder(**changes), torch.rand(2, 3, SIZE, SIZE)
    whole = encoder.encode(pixels)
    maps = encoder.compute_maps(pixels)
    del encoder.backbone  # maps are enough
    output = encoder.encode_maps(maps)
    assert torch.equal(output.context, whole.context)
    assert output.pooled is whole.pooled is None or torch.equal(output.pooled, whole.pooled)


def test_the_digest_covers_backbone_and_pixels_and_nothing_else():
    encoder = tiny_encoder()
    source = MapsSource.from_encoder(encoder, SIZE)
    assert MapsSource.from_encoder(tiny_encoder(query_layers=4), SIZE).backbone != ""
    with torch.no_grad():
        encoder.query_transformer.queries.add_(1)
        assert MapsSource.from_encoder(encoder, SIZE) == source
        next(encoder.backbone.parameters()).view(-1)[0].add_(1)
    assert MapsSource.from_encoder(encoder, SIZE).backbone != source.backbone
    assert MapsSource.from_encoder(tiny_encoder(image_mean=(0.5, 0.4, 0.2)), SIZE).backbone != source.backbone
    assert MapsSource.from_encoder(tiny_encoder(), 2 * SIZE).digest != source.digest
    assert len(source.shapes) == 3


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A configuration and shards with maps for it, mirrored ones too."""
    from data.build import main as build

    folder = tmp_path_factory.mktemp("maps")
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), block_out_channels=(4,),
        norm_num_groups=2, mid_block_add_attention=False,
    )  # fmt: skip
    vae.save_pretrained(folder / "vae")
    (folder / "backbone").mkdir()
    write_safetensors(folder / "backbone" / "model.safetensors", tiny_encoder().backbone.state_dict(), {})
    config = folder / "config.yaml"
    arguments = {**ENCODER, "image_mean": [0.5, 0.4, 0.3]}
    stage = {"encoder": arguments, "backbone_weights": str(folder / "backbone")}
    config.write_text(yaml.safe_dump({"stage": {"init_args": stage}}))
    assert build(["world", str(folder / "raw"), "--count", "3", "--size", str(SIZE)]) == 0
    arguments = [str(folder / "raw"), str(folder / "out"), "--base", str(folder), "--size", str(SIZE), "--flip"]
    assert cache.main([*arguments, "--maps", str(config), "--device", "cpu"]) == 0
    return config, folder / "out"


def test_cached_maps_are_those_of_the_picture(cached: tuple[Path, Path]):
    encoder = cache.load_backbone(cached[0], torch.device("cpu"))
    source, picture = MapsSource.from_encoder(encoder, SIZE), SquareImage(SIZE, flip=True)
    shards = open_shards(cached[1])
    check_cache(shards, picture, source)
    transform = WithCaches(picture, (source,))
    reader = ShardReader(shards, transform.members)
    flips = set()
    for number in range(3):
        for epoch in range(6):
            example = transform(reader.read(0, number), epoch, number)
            flips.add(picture.is_flipped(epoch, number))
            assert example[MapsSource.flag] is True
            for level, value in enumerate(encoder.compute_maps(example["pixels"][None].float() / 255)):
                torch.testing.assert_close(example[map_column(level)].float(), value[0], rtol=2**-10, atol=1e-5)
    assert flips == {True, False}


def test_maps_that_do_not_belong_are_refused(cached: tuple[Path, Path], make_picture: Callable[..., bytes]):
    source = MapsSource.from_encoder(cache.load_backbone(cached[0], torch.device("cpu")), SIZE)
    other, picture = replace(source, backbone="b" * 64), SquareImage(SIZE)
    shards = open_shards(cached[1])
    sample = ShardReader(shards, {MapsSource.member()}).read(0, 0)
    for refused in (
        lambda: check_cache(shards, picture, other),
        lambda: WithCaches(picture, (other,))(sample, 0, 0),
    ):
        with pytest.raises(WeightsError) as caught:
            refused()
        assert source.digest[:16] in str(caught.value)
        assert other.digest[:16] in str(caught.value)
    about = {**shards.shards[0].settings["maps"], "flipped": False}
    unflipped = ShardSet((LocatedShard(Shard("0.tar", 1), Path("x"), (), {"maps": about}),))
    with pytest.raises(WeightsError, match="--flip"):
        check_cache(unflipped, SquareImage(SIZE, flip=True), source)
    with pytest.raises(ValueError, match="do not belong"):
        WithCaches(SquareImage(SIZE, crop="random"), (source,))
    with pytest.raises(UnusableSample, match="do not parse"):
        WithCaches(picture, (source,))({**sample, MapsSource.member(): sample[MapsSource.member()][:-1]}, 0, 0)
    raw = WithCaches(picture, (source,))({"png": make_picture(1)}, 0, 0)
    assert raw[MapsSource.flag] is False
    assert raw[map_column(0)].shape == source.shapes[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no configuration"),
        ("stage: {init_args: {encoder: {}}}", "no configuration"),
        ("stage: {init_args: {encoder: {nothing: 1}, backbone_weights: x}}", "no configuration"),
    ],
)
def test_other_files_are_no_configuration(tmp_path: Path, text: str, message: str):
    config = tmp_path / "config.yaml"
    config.write_text(text)
    with pytest.raises(ValueError, match=message):
        cache.load_backbone(config, torch.device("cpu"))
