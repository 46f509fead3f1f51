"""Exports are complete, check themselves, and leave nothing behind when they fail."""

import json

import pytest
import torch
from safetensors import safe_open

from seecoder import SeeCoder
from seecoder.export.exporting import build_encoder, export_encoder, probe
from seecoder.export.model_card import CardFacts, model_card
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
        assert torch.equal(one(probe()), other(probe()))


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
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors. is not there"):
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


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_export_agrees_at_any_fixed_size(encoder, build, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    encoder = build["encoder"](pooled_dim=12, position_aware=True)
    report = export_encoder(encoder, tmp_path / "out", "onnx", size=(40, 72))
    assert report.difference < 1e-4
    assert (tmp_path / "out" / "encoder.onnx").is_file()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["context_dim"] == 32
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "encoder.onnx"))
    assert [node.name for node in session.get_outputs()] == ["context", "pooled"]
    with torch.no_grad():
        expected = encoder.encode(probe(40, 72))
    context, pooled = session.run(None, {"pixels": probe(40, 72).numpy()})
    torch.testing.assert_close(torch.from_numpy(context), expected.context, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.from_numpy(pooled), expected.pooled, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("format", "name"), [("hub", "out"), ("official", "out.safetensors")])
def test_an_export_that_does_not_check_out_leaves_nothing(encoder, format, name, tmp_path, monkeypatch):
    original = SeeCoder.encode
    calls = []

    def drifting(self, pixels, *rest):
        calls.append(self)
        output = original(self, pixels, *rest)
        output.context = output.context + len(calls) * 1e-6
        return output

    monkeypatch.setattr(SeeCoder, "encode", drifting)
    with pytest.raises(WeightsError, match="does not check out"):
        export_encoder(encoder, tmp_path / name, format)
    assert len(calls) == 2
    assert list(tmp_path.iterdir()) == []


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
    with pytest.raises(ValueError, match="no place for a pooled projection"):
        export_encoder(build["encoder"](pooled_dim=8), tmp_path / "out.safetensors", "official")
    assert list(tmp_path.iterdir()) == []


def test_the_card_quotes_what_a_yaml_reader_would_misread(encoder):
    card = model_card(encoder, "hub", CardFacts(license='odd: "one"\nevil: yes', notes={"a": "b | c\nd"}), (1, 1))
    header = card.split("---")[1]
    assert 'license: "odd: \\"one\\" evil: yes"' in header
    assert "\nevil" not in header
    assert "| a | b \\| c d |" in card
