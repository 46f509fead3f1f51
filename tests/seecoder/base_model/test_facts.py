"""What configurations say of a base: the same from a network, from its configuration, and for published bases."""

import pytest

from seecoder.base_model.facts import (
    context_width,
    family,
    has_outdated_size,
    is_sdxl,
    native_size,
    pixels_per_cell,
    pooled_width,
    reads_mask,
)

SDXL = {
    "cross_attention_dim": 2048,
    "sample_size": 128,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD15 = {"cross_attention_dim": 768, "sample_size": 64}


def test_published_configurations_are_known_without_weights() -> None:
    assert (family(SD15), context_width(SD15), pooled_width(SD15), native_size(SD15)) == ("sd", 768, None, (64, 64))
    assert (family(SDXL), context_width(SDXL), pooled_width(SDXL), native_size(SDXL)) == (
        "sdxl",
        2048,
        1280,
        (128, 128),
    )
    assert is_sdxl(SDXL)
    assert not is_sdxl(SD15)


def test_a_network_gives_what_its_configuration_gives(build) -> None:
    sizes = {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 20 + 6 * 4}
    for unet in (build["unet"](), build["unet"](addition_embed_type="text_time", sample_size=(8, 16), **sizes)):
        for fact in (family, context_width, pooled_width, native_size, is_sdxl):
            assert fact(unet) == fact(dict(unet.config))
    assert pooled_width(unet) == 20
    assert native_size(unet) == (8, 16)
    assert pixels_per_cell(build["vae"]()) == 2
    assert pixels_per_cell({"block_out_channels": (128, 256, 512, 512)}) == 8


def test_a_network_without_a_configuration_is_not_sdxl() -> None:
    assert not is_sdxl(None)
    assert not is_sdxl(lambda latents: latents)


def test_other_families_are_refused_by_what_they_read() -> None:
    with pytest.raises(ValueError, match=r"`addition_embed_type`='image' of the base's UNet must be null "):
        family({"addition_embed_type": "image"})


@pytest.mark.parametrize("width", [None, (320, 640)])
def test_a_unet_without_one_context_width_is_refused(width) -> None:
    with pytest.raises(ValueError, match=r"`cross_attention_dim`=.* must be one width"):
        context_width({"cross_attention_dim": width})


def test_blocks_that_all_read_one_width_count_as_one() -> None:
    assert context_width({"cross_attention_dim": [768, 768]}) == 768


def test_inpainting_networks_are_known_by_their_channels() -> None:
    assert reads_mask({"in_channels": 9, "out_channels": 4})
    assert not reads_mask({"in_channels": 4, "out_channels": 4})


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({"sample_size": 32, "_diffusers_version": "0.6.0"}, (64, 64)),  # as diffusers' own pipeline takes it
        ({"sample_size": 32, "_diffusers_version": "0.8.1"}, (64, 64)),
        ({"sample_size": 32, "_diffusers_version": "0.9.0"}, (32, 32)),
        ({"sample_size": 32, "_diffusers_version": "0.42.1"}, (32, 32)),
        ({"sample_size": 32}, (32, 32)),
        ({"sample_size": [32, 48], "_diffusers_version": "0.6.0"}, (32, 48)),
        ({"sample_size": 64, "_diffusers_version": "0.6.0"}, (64, 64)),
        ({"cross_attention_dim": 768}, (64, 64)),
        ({"cross_attention_dim": 2048, "sample_size": None}, (128, 128)),
    ],
)
def test_a_side_that_is_outdated_or_missing_is_what_the_base_was_trained_at(config, size) -> None:
    assert native_size(config) == size
    assert has_outdated_size(config) == (size == (64, 64) and config.get("sample_size") == 32)


def test_a_side_that_nothing_tells_is_asked_for() -> None:
    for config in ({}, {"sample_size": None, "cross_attention_dim": 1024}):
        with pytest.raises(ValueError, match="`sample_size`=None of the base's UNet must be the height and width"):
            native_size(config)
        assert native_size(config, (8, 16)) == (8, 16)


@pytest.mark.parametrize("side", [8.5, "64", -8, [64], [64, 64, 64], [64, 0]])
def test_a_side_that_is_no_number_of_cells_is_refused(side) -> None:
    with pytest.raises(ValueError, match=r"`sample_size`=.* must be a whole number from 1 up or two"):
        native_size({"sample_size": side})
