"""Exports are complete, check themselves, and leave nothing behind when they fail."""

import pytest
import torch
from safetensors import safe_open

from seecoder import SeeCoder
from seecoder.export.exporting import build_encoder, export_encoder, probe_picture
from seecoder.export.model_card import CardFacts
from seecoder.export.trained_part import TrainedEncoder
from seecoder.weights.digests import tensors_sha256
from seecoder.weights.safetensors_files import WeightsError, write_safetensors


@pytest.fixture
def encoder(build):
    return build["encoder"]()


@pytest.fixture
def trained(encoder, tmp_path):
    """The trained part of `encoder`, its backbone in a file of its own, and an average that differs from it."""
    state = encoder.state_dict()
    backbone = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    write_safetensors(tmp_path / "backbone.safetensors", backbone, {})
    own = {key: value.clone() for key, value in state.items() if not key.startswith("backbone.")}
    return TrainedEncoder(
        config={key: value for key, value in encoder.config.items() if not key.startswith("_")},
        trainable=own,
        ema={key: value + 0.01 for key, value in own.items() if value.is_floating_point()},
        backbone_source=str(tmp_path / "backbone.safetensors"),
        backbone_sha256=tensors_sha256(encoder.backbone.state_dict()),
    )


def assert_same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in ours)
    with torch.no_grad():
        assert torch.equal(one(probe_picture()), other(probe_picture()))


def test_the_trained_part_joins_its_backbone(encoder, trained):
    assert_same(build_encoder(trained, use_ema=False), encoder)
    averaged = build_encoder(trained).state_dict()
    for key, value in trained.ema.items():
        torch.testing.assert_close(averaged[key], value)


@pytest.mark.parametrize("kind", ["folder", "official", "prefixed"])
def test_backbones_are_found_in_other_forms(encoder, trained, kind, tmp_path):
    if kind == "official":
        encoder.save_official(tmp_path / "released.safetensors")
        place = tmp_path / "released.safetensors"
    else:
        place = tmp_path / "saved"
        if kind == "folder":
            encoder.save_pretrained(place)
        else:
            place.mkdir()
            write_safetensors(place / "whole.safetensors", encoder.state_dict(), {})
    assert_same(build_encoder(trained, use_ema=False, backbone=place), encoder)


def test_another_backbone_is_refused(encoder, trained, tmp_path):
    tensors = {
        key: value + (0.1 if value.is_floating_point() else 0) for key, value in encoder.backbone.state_dict().items()
    }
    write_safetensors(tmp_path / "other.safetensors", tensors, {})
    with pytest.raises(WeightsError, match=r"not the one that the encoder was trained on .*--backbone"):
        build_encoder(trained, backbone=tmp_path / "other.safetensors")


def test_missing_backbones_and_tensors_are_named(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors. does not exist"):
        build_encoder(trained, backbone=tmp_path / "gone.safetensors")
    nowhere = TrainedEncoder(trained.config, trained.trainable)
    with pytest.raises(ValueError, match="does not say where its backbone is"):
        build_encoder(nowhere)
    key = sorted(trained.trainable)[0]
    less = {name: value for name, value in trained.trainable.items() if name != key}
    partial = TrainedEncoder(trained.config, less, None, trained.backbone_source)
    with pytest.raises(WeightsError, match=key):
        build_encoder(partial)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hub_export_is_the_encoder(encoder, dtype, tmp_path):
    encoder = encoder.to(dtype)
    facts = CardFacts(license="mit", base_model="someone/a-base", notes={"steps": "250"})
    report = export_encoder(encoder, tmp_path / "out", "hub", facts=facts)
    assert report.difference == 0.0
    assert report.num_tensors == len(encoder.state_dict())
    assert_same(SeeCoder.from_pretrained(tmp_path / "out", dtype=dtype), encoder)
    assert len({file.stat().st_mode for file in (tmp_path / "out").iterdir()}) == 1  # all as readable as any new file
    card = (tmp_path / "out" / "README.md").read_text()
    for line in (
        "license: mit",
        "library_name: diffusers",
        "pipeline_tag: image-to-image",
        "base_model: someone/a-base",
    ):
        assert f"\n{line}\n" in card
    assert "| steps | 250 |" in card


def test_official_export_is_the_encoder(encoder, tmp_path):
    report = export_encoder(encoder, tmp_path / "out.safetensors", "official")
    assert report.difference == 0.0
    config = {key: value for key, value in encoder.config.items() if not key.startswith("_")}
    assert_same(SeeCoder.from_official(tmp_path / "out.safetensors", **config), encoder)
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        keys = list(file.keys())
    assert all(key.startswith("ctx.image.") for key in keys)
    assert report.num_tensors == len(keys)


@pytest.mark.parametrize(("format", "name"), [("hub", "out"), ("official", "out.safetensors")])
def test_an_export_with_another_context_leaves_nothing(encoder, format, name, tmp_path, monkeypatch):
    original = SeeCoder.encode
    calls = []

    def drifting(self, pixels, *rest):
        calls.append(self)
        output = original(self, pixels, *rest)
        output.context = output.context + len(calls) * 1e-4
        return output

    monkeypatch.setattr(SeeCoder, "encode", drifting)
    with pytest.raises(WeightsError, match=r"its context of the same picture differs by 0\.0001"):
        export_encoder(encoder, tmp_path / name, format)
    assert len(calls) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("format", "name"), [("hub", "out"), ("official", "out.safetensors")])
def test_an_export_with_another_weight_leaves_nothing(encoder, format, name, tmp_path, monkeypatch):
    method = "from_pretrained" if format == "hub" else "from_official"
    load = getattr(SeeCoder, method)

    def damaged(*arguments, **options):
        loaded = load(*arguments, **options)
        with torch.no_grad():
            loaded.query_transformer.queries[0, 0] += 1e-7
        return loaded

    monkeypatch.setattr(SeeCoder, method, damaged)
    with pytest.raises(WeightsError, match=r"`query_transformer\.queries` differs from the encoder"):
        export_encoder(encoder, tmp_path / name, format)
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_with_a_pooled_vector_is_exported_although_memory_is_aligned_otherwise(build, tmp_path):
    # Equal weights that a file's buffer holds give products that may differ in the last bit.
    encoder = build["encoder"](pooled_dim=16, position_aware=True, decoder_attention="spatial")
    assert export_encoder(encoder, tmp_path / "out", "hub").difference < 1e-5


def test_nothing_is_overwritten_unasked(encoder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(FileExistsError):
        export_encoder(encoder, tmp_path / "out", "hub")
    assert (tmp_path / "out" / "precious").read_text() == "x"
    export_encoder(encoder, tmp_path / "out", "hub", overwrite=True)
    assert not (tmp_path / "out" / "precious").exists()
    (tmp_path / "out.safetensors").write_text("x")
    with pytest.raises(FileExistsError):
        export_encoder(encoder, tmp_path / "out.safetensors", "official")


def test_bad_requests_are_named(encoder, build, tmp_path):
    with pytest.raises(ValueError, match="`format`='pickle'"):
        export_encoder(encoder, tmp_path / "out", "pickle")
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        export_encoder(encoder, tmp_path / "out", "official")
    with pytest.raises(ValueError, match="`pooled_dim`=8 has no place in the released layout"):
        export_encoder(build["encoder"](pooled_dim=8), tmp_path / "out.safetensors", "official")
    assert list(tmp_path.iterdir()) == []
