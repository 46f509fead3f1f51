"""Moments as a member of a sample: what binds them, what is taken, what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from data.shards.caching.moments import (
    CACHED,
    FORMAT,
    MEAN,
    MEMBER,
    STD,
    MomentsSource,
    WithMoments,
    autoencoder_sha256,
    check_moments,
    encode_moments,
)
from data.shards.caching.tensor_members import pack_tensors, unpack_tensors
from data.shards.manifest import Shard
from data.shards.reading.square_image import SquareImage, UnusableSample
from data.shards.shard_set import LocatedShard, ShardSet
from seecoder.weights.safetensors_files import WeightsError

SOURCE = MomentsSource("a" * 64, "float32", 8, (4, 2, 2))


def tiny_vae(**changes: Any) -> Any:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (4, 4),
        "norm_num_groups": 2,
        "mid_block_add_attention": False,
    }
    return AutoencoderKL(**{**config, **changes}).eval()


def moments(*, flipped: bool = False) -> dict[str, torch.Tensor]:
    names = ["mean", "std", *(["flipped_mean", "flipped_std"] if flipped else [])]
    return {name: torch.full((4, 2, 2), float(number), dtype=torch.half) for number, name in enumerate(names)}


def test_the_hash_covers_what_encodes_and_nothing_else():
    vae = tiny_vae()
    sha256 = autoencoder_sha256(vae)
    assert autoencoder_sha256(tiny_vae()) == sha256
    assert autoencoder_sha256(vae.to(memory_format=torch.channels_last)) == sha256
    with torch.no_grad():
        vae.decoder.conv_out.bias.add_(1)
        assert autoencoder_sha256(vae) == sha256
        vae.quant_conv.bias[0].add_(1e-6)
    assert autoencoder_sha256(vae) != sha256
    assert autoencoder_sha256(tiny_vae(scaling_factor=0.5)) != sha256
    assert autoencoder_sha256(tiny_vae().bfloat16()) != sha256  # its weights are others


def test_every_attribute_changes_the_digest():
    others = [
        replace(SOURCE, **change)
        for change in ({"autoencoder": "b" * 64}, {"dtype": "bfloat16"}, {"size": 16}, {"shape": (4, 1, 1)})
    ]
    assert len({SOURCE.digest, *(other.digest for other in others)}) == 5
    vae = tiny_vae()
    assert MomentsSource.from_vae(vae, 8).shape == tuple(encode_moments(vae, torch.rand(1, 3, 8, 8))[0].shape[1:])
    with pytest.raises(ValueError, match="multiple of 2"):
        MomentsSource.from_vae(vae, 9)


def test_moments_are_those_of_the_scaled_and_shifted_latent():
    vae = tiny_vae(scaling_factor=0.3, shift_factor=0.1)
    pixels = torch.rand(2, 3, 8, 8)
    posterior = vae.encode(pixels * 2 - 1).latent_dist
    mean, std = encode_moments(vae, pixels)
    torch.testing.assert_close(mean, (posterior.mean - 0.1) * 0.3)
    torch.testing.assert_close(std, posterior.std * 0.3)


def test_pack_and_unpack():
    content = pack_tensors(moments(), FORMAT, SOURCE.digest)
    digest, tensors = unpack_tensors(content, FORMAT)
    assert digest == SOURCE.digest
    assert all(torch.equal(tensors[name], value) for name, value in moments().items())
    assert content == pack_tensors(moments(), FORMAT, SOURCE.digest)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{}",
        pack_tensors(moments(), FORMAT, SOURCE.digest)[:-1],
        pack_tensors(moments(), FORMAT, SOURCE.digest).replace(b"seecoder.moments.1", b"seecoder.moments.9"),
    ],
)
def test_damaged_moments_are_a_bad_sample(content: bytes, make_picture: Callable[..., bytes]):
    with pytest.raises(UnusableSample):
        unpack_tensors(content, FORMAT)
    with pytest.raises(UnusableSample) as caught:
        WithMoments(SquareImage(8), SOURCE)({"png": make_picture(1), MEMBER: content}, 0, 0)
    assert caught.value.reason == "bad moments"


@pytest.mark.parametrize("change", [lambda value: value.float(), lambda value: value[:2]])
def test_moments_of_another_form_are_a_bad_sample(change: Any, make_picture: Callable[..., bytes]):
    content = pack_tensors({name: change(value) for name, value in moments().items()}, FORMAT, SOURCE.digest)
    with pytest.raises(UnusableSample, match="lack `mean`"):
        WithMoments(SquareImage(8), SOURCE)({"png": make_picture(1), MEMBER: content}, 0, 0)


def test_flipped_moments_go_with_flipped_pictures(make_picture: Callable[..., bytes]):
    picture = SquareImage(8, flip=True)
    sample = {"png": make_picture(1), MEMBER: pack_tensors(moments(flipped=True), FORMAT, SOURCE.digest)}
    seen = set()
    for epoch in range(12):
        example = WithMoments(picture, SOURCE)(sample, epoch, 5)
        flipped = picture.is_flipped(epoch, 5)
        seen.add(flipped)
        assert example[CACHED] is True
        assert example[MEAN].unique().tolist() == [2.0 if flipped else 0.0]
        assert example[STD].unique().tolist() == [3.0 if flipped else 1.0]
        assert torch.equal(example["pixels"], picture(sample, epoch, 5)["pixels"])
    assert seen == {True, False}
    only = {"png": make_picture(1), MEMBER: pack_tensors(moments(), FORMAT, SOURCE.digest)}
    epoch = next(epoch for epoch in range(12) if picture.is_flipped(epoch, 5))
    with pytest.raises(WeightsError, match="--flip"):
        WithMoments(picture, SOURCE)(only, epoch, 5)


def test_a_raw_sample_says_so(make_picture: Callable[..., bytes]):
    example = WithMoments(SquareImage(8), SOURCE)({"png": make_picture(1)}, 0, 0)
    assert example[CACHED] is False
    assert example[MEAN].shape == (4, 2, 2)


def test_moments_of_another_source_end_the_run_and_both_are_named(make_picture: Callable[..., bytes]):
    other = replace(SOURCE, autoencoder="b" * 64)
    with pytest.raises(WeightsError) as caught:
        WithMoments(SquareImage(8), SOURCE)(
            {"png": make_picture(1), MEMBER: pack_tensors(moments(), FORMAT, other.digest)}, 0, 0
        )
    assert other.digest[:16] in str(caught.value)
    assert SOURCE.digest[:16] in str(caught.value)


@pytest.mark.parametrize("picture", [SquareImage(16), SquareImage(8, crop="random")])
def test_pictures_that_are_cut_otherwise_take_no_moments(picture: SquareImage):
    with pytest.raises(ValueError, match="do not belong"):
        WithMoments(picture, SOURCE)


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

    assert check_moments(shards(), SquareImage(8), SOURCE) == 3
    other = replace(SOURCE, autoencoder="b" * 64)
    with pytest.raises(WeightsError, match="cached") as caught:
        check_moments(shards(digest=other.digest, autoencoder=other.autoencoder), SquareImage(8), SOURCE)
    for part in (other.digest[:16], SOURCE.digest[:16], "b" * 16, "a" * 16):
        assert part in str(caught.value)
    with pytest.raises(WeightsError, match="--flip"):
        check_moments(shards(), SquareImage(8, flip=True), SOURCE)
    check_moments(shards(flipped=True), SquareImage(8, flip=True), SOURCE)
    with pytest.raises(WeightsError, match="`crop`='random'"):
        check_moments(shards(), SquareImage(8, crop="random"), SOURCE)
