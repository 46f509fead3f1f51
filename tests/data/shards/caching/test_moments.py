"""Moments of latents: what they are, and what binds them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from data.shards.caching.moments import MomentsSource, autoencoder_sha256, encode_moments

SOURCE = MomentsSource(autoencoder="a" * 64, shape=(4, 2, 2), dtype="float32", size=8)


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
