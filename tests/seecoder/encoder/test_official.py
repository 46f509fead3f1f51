import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from seecoder import SeeCoder, WeightsError
from seecoder.encoder.official import from_official, is_official_file, key_map, to_official
from tests.behaviour import official_parity

# Numbers that the published code computed, and the recipe of the weights on which it did (see the script's header).
GOLDEN = json.loads(official_parity.OUTPUT.read_text())
TINY = GOLDEN["config"]


def _released(position_aware: bool = False) -> dict[str, torch.Tensor]:
    """A tiny file in the released layout; its index tables come from timm's windows, its weights from the recipe."""
    template = SeeCoder(**TINY, decoder_attention="released", position_aware=position_aware)
    tensors = to_official(template.state_dict(), template.backbone)  # type: ignore[arg-type]
    tables = {key: value for key, value in tensors.items() if key.endswith("relative_position_index")}
    return official_parity.released_weights({key: tuple(value.shape) for key, value in tensors.items()}, tables)


@pytest.fixture(scope="module")
def encoders() -> dict[bool, SeeCoder]:
    return {aware: SeeCoder.from_official(_released(aware), **TINY) for aware in (False, True)}


def _sampled(name: str, case: dict, tensor: torch.Tensor) -> torch.Tensor:
    return torch.tensor(official_parity.samples(f"{name} {case['height']}x{case['width']}", tensor))


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: f"{c['height']}x{c['width']}-{c['position_aware']}")
@torch.no_grad()
def test_against_the_published_code(case, encoders):
    encoder = encoders[case["position_aware"]]
    picture = official_parity.pixels(case["height"], case["width"])
    outputs = {"context": encoder(picture)}
    if not case["position_aware"]:  # the maps do not depend on it
        outputs |= dict(zip(("res2", "res3", "res4", "res5"), encoder.backbone(picture), strict=True))
    for name, tensor in outputs.items():
        golden = case["outputs"][name]
        assert list(tensor.shape) == golden["shape"]
        difference = (_sampled(name, case, tensor) - torch.tensor(golden["samples"])).abs().max()
        assert difference <= 1e-5, name


def test_the_whole_outputs_agreed_when_the_numbers_were_taken():
    for case in GOLDEN["cases"] + GOLDEN["real_size"]:
        for name, output in case["outputs"].items():
            assert output["max_abs_diff"] <= 1e-5, (name, case["height"], case["width"])
    assert {(c["height"], c["width"]) for c in GOLDEN["cases"]} == {
        (64, 64),
        (96, 64),
        (100, 132),
        (37, 53),
        (512, 512),
    }


@torch.no_grad()
def test_timms_own_swin_fails_the_same_check(encoders):
    """Negative control: the same weights, run by timm's forward, are off by a quarter on the last map at 512 pixels."""
    backbone = encoders[False].backbone
    (case,) = (c for c in GOLDEN["cases"] if c["height"] == 512 and not c["position_aware"])
    x = backbone.patch_embed(official_parity.pixels(512, 512))
    last = backbone.norm3(backbone.layers(x)).permute(0, 3, 1, 2)  # type: ignore[operator]
    golden = torch.tensor(case["outputs"]["res5"]["samples"])
    error = (_sampled("res5", case, last) - golden).norm() / golden.norm()
    assert 0.1 < error < 0.6


def test_the_position_aware_variant_differs_from_the_plain_one():
    contexts = [c["outputs"]["context"]["samples"] for c in GOLDEN["cases"] if (c["height"], c["width"]) == (64, 64)]
    assert max(abs(a - b) for a, b in zip(*contexts, strict=True)) > 0.01


@pytest.mark.parametrize(("position_aware", "count"), [(False, 616), (True, 622)])
def test_keys_at_the_real_size(position_aware, count):
    with torch.device("meta"):
        encoder = SeeCoder(position_aware=position_aware)
    tensors = to_official(encoder.state_dict(), encoder.backbone)  # type: ignore[arg-type]
    assert len(tensors) == count
    parts = {
        part: [key for key in tensors if key.startswith(f"ctx.image.{part}.")] for part in ("imencoder", "imdecoder")
    }
    assert len(parts["imencoder"]) == 357
    assert len(parts["imdecoder"]) == 94
    assert sum(key.startswith("ctx.image.qtransformer.pe_layer.mlp.") for key in tensors) == 6 * position_aware
    shapes = {key.removeprefix("ctx.image."): tuple(value.shape) for key, value in tensors.items()}
    for key, shape in {
        "imencoder.patch_embed.proj.weight": (192, 3, 4, 4),
        "imencoder.layers.0.downsample.reduction.weight": (384, 768),
        "imencoder.layers.2.blocks.17.attn.relative_position_bias_table": (529, 24),
        "imencoder.layers.3.blocks.1.attn.relative_position_index": (144, 144),
        "imencoder.norm3.bias": (1536,),
        "imdecoder.level_embed": (3, 768),
        "imdecoder.inproj_layers.res5.0.weight": (768, 1536, 1, 1),
        "imdecoder.inproj_layers.res3.1.bias": (768,),
        "imdecoder.lateral_layers.res4.weight": (768, 768, 1, 1),
        "imdecoder.lateral_layers.res4.norm.weight": (768,),
        "imdecoder.transformer.layers.5.self_attn.in_proj_weight": (2304, 768),
        "imdecoder.transformer.layers.0.self_attn.out_proj.bias": (768,),
        "imdecoder.transformer.layers.0.norm1.weight": (768,),
        "imdecoder.transformer.layers.0.linear2.weight": (768, 1024),
        "qtransformer.transformer_crossatt_layers.8.multihead_attn.in_proj_bias": (2304,),
        "qtransformer.transformer_selfatt_layers.0.self_attn.out_proj.weight": (768, 768),
        "qtransformer.transformer_selfatt_layers.0.norm.weight": (768,),
        "qtransformer.transformer_feedforward_layers.3.linear1.weight": (2048, 768),
        "qtransformer.init_query.weight": (148, 768),
        "qtransformer.query_pos_embedding.weight": (148, 768),
        "qtransformer.level_embed.weight": (3, 768),
    }.items():
        assert shapes[key] == shape, key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("position_aware", [False, True])
@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_round_trip_is_byte_identical(dtype, position_aware, metadata, tmp_path):
    tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in _released(position_aware).items()}
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    encoder = SeeCoder.from_official(tmp_path / "a.safetensors", **TINY)
    assert encoder.config["position_aware"] == position_aware
    assert encoder.config["decoder_attention"] == "released"
    assert encoder.query_transformer.queries.dtype == dtype
    assert not encoder.training
    encoder.save_official(tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_round_trip_goes_through_a_saved_folder(tmp_path):
    tensors = _released(True)
    SeeCoder.from_official(tensors, **TINY).save_pretrained(tmp_path)
    SeeCoder.from_pretrained(tmp_path).save_official(tmp_path / "b.safetensors")
    written = load_file(tmp_path / "b.safetensors")
    assert written.keys() == tensors.keys()
    assert all(torch.equal(value, tensors[key]) for key, value in written.items())


def test_query_key_and_value_are_the_rows_of_the_fused_matrix(encoders):
    tensors = _released()
    attention = encoders[False].decoder.layers[1].attention
    fused = tensors["ctx.image.imdecoder.transformer.layers.1.self_attn.in_proj_weight"]
    for part, rows in zip((attention.query, attention.key, attention.value), fused.chunk(3), strict=True):
        assert torch.equal(part.weight, rows)


def test_spatial_attention_can_be_asked_for():
    encoder = SeeCoder.from_official(_released(), **TINY, decoder_attention="spatial")
    assert encoder.decoder.idle_parameters() == []


def _without(tensors: dict[str, torch.Tensor], key: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in tensors.items() if name != f"ctx.image.{key}"}


def _with(tensors: dict[str, torch.Tensor], key: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**tensors, f"ctx.image.{key}": value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: _without(t, "qtransformer.level_embed.weight"),
            r"1 weight is missing \(ctx.image.qtransformer.level_embed.weight\)",
        ),
        (lambda t: _with(t, "imencoder.norm4.weight", torch.ones(1)), "1 is unexpected .*norm4"),
        (
            lambda t: _with(t, "imdecoder.level_embed", torch.ones(2, 64)),
            r"imdecoder.level_embed is \(2, 64\) where \(3, 64\) is needed",
        ),
        (
            lambda t: _with(
                t, "imencoder.layers.0.blocks.0.attn.relative_position_index", torch.zeros(144, 144).long()
            ),
            "another `ctx.image.imencoder.layers.0.blocks.0.attn.relative_position_index`",
        ),
        (
            lambda t: _with(t, "qtransformer.pe_layer.mlp.0.bias", torch.ones(64)),
            "5 weights are missing .*position-aware",
        ),
        (lambda t: {"unet.weight": torch.ones(1)}, "weights are missing .* 1 is unexpected"),
        (lambda t: {}, "holds no weights of an encoder"),
    ],
)
def test_files_that_do_not_fit_exactly_are_refused(change, message):
    with pytest.raises(WeightsError, match=message):
        SeeCoder.from_official(change(_released()), **TINY)


def test_the_real_size_is_assumed_unless_told():
    with pytest.raises(ValueError, match="`position_aware`=True must be False, as the keys of `source` are"):
        SeeCoder.from_official(_released(), **TINY, position_aware=True)
    with torch.device("meta"):
        encoder = SeeCoder()
    with pytest.raises(WeightsError, match=r"weights are missing .* 616 are expected"):
        from_official(_released(), encoder.state_dict(), encoder.backbone, source="tiny")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooled_dim": 4}, "`pooled_dim`"),
        ({"image_mean": (0.5, 0.5, 0.5)}, "`image_mean`"),
        ({"position_aware": True, "positions_in_values": True}, "`positions_in_values`"),
        ({"image_std": (0.5, 1, 1)}, "`image_"),
    ],
)
def test_parts_without_a_place_in_the_layout_are_not_written(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        SeeCoder(**TINY, **changes).save_official(tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_unknown_keys_have_no_released_name():
    with pytest.raises(ValueError, match=r"`pooled_projection\.weight` has no place in the released layout"):
        key_map(["pooled_projection.weight"])


def test_a_released_file_is_known_by_its_header(encoders, tmp_path):
    released, other = tmp_path / "released.safetensors", tmp_path / "other.safetensors"
    encoders[False].save_official(released)
    save_file({"unet.weight": torch.ones(1)}, other)
    (tmp_path / "damaged.safetensors").write_bytes(released.read_bytes()[:1000])
    assert is_official_file(released)
    for path in (other, tmp_path / "damaged.safetensors", tmp_path / "gone.safetensors", tmp_path):
        assert not is_official_file(path)
