"""What is cached as a member of a sample: what binds it, what is taken, what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data.shards.caching.cache_source import Extra, WithCaches, check_cache
from data.shards.caching.moments import MEAN, STD, MomentsSource
from data.shards.manifest import Shard
from data.shards.reading.square_image import SquareImage, UnusableSample
from data.shards.shard_set import LocatedShard, ShardSet
from seecoder.weights.safetensors_files import WeightsError

SOURCE = MomentsSource(autoencoder="a" * 64, shape=(4, 2, 2), dtype="float32", size=8)


def moments(*, flipped: bool = False) -> dict[str, torch.Tensor]:
    names = ["mean", "std", *(["flipped_mean", "flipped_std"] if flipped else [])]
    return {name: torch.full((4, 2, 2), float(number), dtype=torch.half) for number, name in enumerate(names)}


def test_pack_and_unpack():
    content = SOURCE.pack(moments())
    digest, tensors = SOURCE.unpack(content)
    assert digest == SOURCE.digest
    assert all(torch.equal(tensors[name], value) for name, value in moments().items())
    assert content == SOURCE.pack(moments())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{}",
        SOURCE.pack(moments())[:-1],
        SOURCE.pack(moments()).replace(b"seecoder.moments.1", b"seecoder.moments.9"),
    ],
)
def test_damaged_moments_are_a_bad_sample(content: bytes, make_picture: Callable[..., bytes]):
    with pytest.raises(UnusableSample):
        SOURCE.unpack(content)
    with pytest.raises(UnusableSample) as caught:
        WithCaches(SquareImage(8), (SOURCE,))({"png": make_picture(1), SOURCE.member(): content}, 0, 0)
    assert caught.value.reason == "bad moments"


@pytest.mark.parametrize("change", [lambda value: value.float(), lambda value: value[:2]])
def test_moments_of_another_form_are_a_bad_sample(change: Any, make_picture: Callable[..., bytes]):
    content = SOURCE.pack({name: change(value) for name, value in moments().items()})
    with pytest.raises(UnusableSample, match="lack `mean`"):
        WithCaches(SquareImage(8), (SOURCE,))({"png": make_picture(1), SOURCE.member(): content}, 0, 0)


def test_flipped_moments_go_with_flipped_pictures(make_picture: Callable[..., bytes]):
    picture = SquareImage(8, flip=True)
    sample = {
        "png": make_picture(1),
        SOURCE.member(): SOURCE.pack(moments(flipped=True)),
    }
    seen = set()
    for epoch in range(12):
        example = WithCaches(picture, (SOURCE,))(sample, epoch, 5)
        flipped = picture.is_flipped(epoch, 5)
        seen.add(flipped)
        assert example[SOURCE.flag] is True
        assert example[MEAN].unique().tolist() == [2.0 if flipped else 0.0]
        assert example[STD].unique().tolist() == [3.0 if flipped else 1.0]
        assert torch.equal(example["pixels"], picture(sample, epoch, 5)["pixels"])
    assert seen == {True, False}
    only = {"png": make_picture(1), SOURCE.member(): SOURCE.pack(moments())}
    epoch = next(epoch for epoch in range(12) if picture.is_flipped(epoch, 5))
    with pytest.raises(WeightsError, match="--flip"):
        WithCaches(picture, (SOURCE,))(only, epoch, 5)


def test_a_raw_sample_says_so(make_picture: Callable[..., bytes]):
    example = WithCaches(SquareImage(8), (SOURCE,))({"png": make_picture(1)}, 0, 0)
    assert example[SOURCE.flag] is False
    assert example[MEAN].shape == (4, 2, 2)


def test_moments_of_another_source_end_the_run_and_both_are_named(make_picture: Callable[..., bytes]):
    other = replace(SOURCE, autoencoder="b" * 64)
    with pytest.raises(WeightsError) as caught:
        WithCaches(SquareImage(8), (SOURCE,))({"png": make_picture(1), SOURCE.member(): other.pack(moments())}, 0, 0)
    assert other.digest[:16] in str(caught.value)
    assert SOURCE.digest[:16] in str(caught.value)


@pytest.mark.parametrize("picture", [SquareImage(16), SquareImage(8, crop="random")])
def test_pictures_that_are_cut_otherwise_take_no_moments(picture: SquareImage):
    with pytest.raises(ValueError, match="do not belong"):
        WithCaches(picture, (SOURCE,))


def test_manifests_are_compared_before_anything_is_read():
    about = {
        "digest": SOURCE.digest,
        "autoencoder": SOURCE.autoencoder,
        "dtype": "float32",
        "size": 8,
        "crop": "center",
    }

    def shards(**changes: Any) -> ShardSet:
        raw = LocatedShard(Shard("0.tar", 5), Path("raw"), ())
        cached = LocatedShard(
            Shard("0.tar", 3), Path("cached"), (), {"moments": {**about, "flipped": False, **changes}}
        )
        return ShardSet((raw, cached))

    check_cache(shards(), SquareImage(8), SOURCE)
    other = replace(SOURCE, autoencoder="b" * 64)
    with pytest.raises(WeightsError, match="cached") as caught:
        check_cache(shards(digest=other.digest, autoencoder=other.autoencoder), SquareImage(8), SOURCE)
    for part in (other.digest[:16], SOURCE.digest[:16], "b" * 16, "a" * 16):
        assert part in str(caught.value)
    with pytest.raises(WeightsError, match="--flip"):
        check_cache(shards(), SquareImage(8, flip=True), SOURCE)
    check_cache(shards(flipped=True), SquareImage(8, flip=True), SOURCE)
    with pytest.raises(WeightsError, match="`crop`='random'"):
        check_cache(shards(), SquareImage(8, crop="random"), SOURCE)


def test_a_row_that_is_not_finite_has_no_member():
    values = torch.tensor([1.0, float("inf"), float("nan")]).view(3, 1, 1, 1).expand(3, 4, 2, 2)
    extra = Extra(SOURCE, lambda pixels: {"mean": values, "std": pixels[:, :, :2, :2]}, torch.device("cpu"))
    pixels = torch.full((3, 3, 8, 8), 255, dtype=torch.uint8)
    first, second, third = extra(pixels)
    assert first == SOURCE.pack({"mean": values[0].half().contiguous(), "std": torch.ones(3, 2, 2).half()})
    assert second is third is None


@pytest.mark.parametrize("flip", [False, True])
def test_mirrored_pictures_have_tensors_of_their_own(flip: bool):
    extra = Extra(SOURCE, lambda pixels: {"mean": pixels[:, :, 0]}, torch.device("cpu"), flip)
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    _, tensors = SOURCE.unpack(extra(pixels)[1] or b"")
    assert sorted(tensors) == (["flipped_mean", "mean"] if flip else ["mean"])
    if flip:
        assert torch.equal(tensors["flipped_mean"], tensors["mean"].flip(1))
    assert extra.settings == {"moments": {**SOURCE.settings, "flipped": flip}}
