"""Saved folders come back identical; what diffusers would load half, or from a pickle, is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from seecoder import SeeCoder, WeightsError
from tests.fixtures.encoders import TINY, make_encoder, make_pixels


@pytest.mark.parametrize("changes", [{}, {"position_aware": True, "decoder_attention": "released", "pooled_dim": 5}])
def test_saved_folder_comes_back_identical(changes, tmp_path):
    encoder = make_encoder(**changes)
    encoder.save_pretrained(tmp_path)
    loaded = SeeCoder.from_pretrained(tmp_path)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.backbone.parameters())
    state = encoder.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    assert loaded.config["decoder_attention"] == encoder.config["decoder_attention"]
    with torch.no_grad():
        assert torch.equal(loaded(make_pixels()), encoder(make_pixels()))
    loaded.save_pretrained(tmp_path / "again")
    name = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_half_precision_on_loading_keeps_positions_in_float32(tmp_path):
    encoder = make_encoder(position_aware=True)
    encoder.save_pretrained(tmp_path)
    for options in ({}, {"low_cpu_mem_usage": True}):
        loaded, report = SeeCoder.from_pretrained(tmp_path, dtype=torch.bfloat16, output_loading_info=True, **options)
        assert report["missing_keys"] == []
        assert loaded.decoder.level_embedding.dtype == torch.bfloat16
        positions = loaded.query_transformer.position_encoding
        assert torch.equal(positions.mlp[0].weight, encoder.query_transformer.position_encoding.mlp[0].weight)  # type: ignore[union-attr]
        assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))


def _rewrite(folder, change) -> None:
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("decoder.level_embedding"), r"1 weight is missing \(decoder.level_embedding\)"),
        (lambda t: t.pop("backbone.norm0.bias"), r"1 weight is missing \(backbone.norm0.bias\)"),
        (lambda t: t.update(extra=torch.zeros(2)), r"1 is unexpected \(extra\)"),
        (
            lambda t: t.update({"query_transformer.queries": torch.zeros(9, 32)}),
            r"1 does not fit \(size mismatch for query_transformer.queries",
        ),
    ],
)
def test_a_folder_that_does_not_fit_exactly_is_refused(change, message, tmp_path):
    make_encoder().save_pretrained(tmp_path)
    _rewrite(tmp_path, change)
    for options in ({}, {"low_cpu_mem_usage": True}):
        with pytest.raises(WeightsError, match=message):
            SeeCoder.from_pretrained(tmp_path, **options)


def test_a_configuration_of_the_other_variant_is_refused(tmp_path):
    make_encoder().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "position_aware": True}))
    with pytest.raises(WeightsError, match=r"which is a position-aware encoder's: 6 weights are missing"):
        SeeCoder.from_pretrained(tmp_path)


def test_pickles_are_neither_read_nor_written(tmp_path):
    encoder = make_encoder()
    with pytest.raises(ValueError, match="`safe_serialization`=False would write a pickle"):
        encoder.save_pretrained(tmp_path / "a", safe_serialization=False)
    encoder.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`use_safetensors`=False would load a pickle"):
        SeeCoder.from_pretrained(tmp_path, use_safetensors=False)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(encoder.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        SeeCoder.from_pretrained(tmp_path)


def test_weights_without_values_are_not_saved(tmp_path):
    with torch.device("meta"):
        encoder = SeeCoder(**TINY)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match="weights have no values yet"):
        encoder.save_pretrained(tmp_path)


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file; give a folder"):
        make_encoder().save_pretrained(tmp_path / "taken")
