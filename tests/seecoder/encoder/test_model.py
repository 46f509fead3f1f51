import inspect
import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from seecoder import SeeCoder, WeightsError
from seecoder.encoder.model import SeeCoderOutput

SWIN = {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 4), "window_size": 4}
TINY = {
    "backbone_args": SWIN,
    "context_dim": 32,
    "num_heads": 4,
    "decoder_layers": 2,
    "decoder_ffn_dim": 24,
    "query_layers": 4,
    "query_ffn_dim": 20,
    "num_global_queries": 2,
    "num_local_queries": 6,
}


def _encoder(**changes: object) -> SeeCoder:
    """A tiny encoder in which nothing is trivial: no zero biases, no unit norms, positions trained."""
    torch.manual_seed(0)
    encoder = SeeCoder(**{**TINY, **changes}).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return encoder


def _pixels(batch: int = 1, height: int = 64, width: int = 48) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------------------------------------------- signature


def test_signature_is_the_one_that_others_rely_on():
    defaults = {
        name: p.default for name, p in inspect.signature(SeeCoder.__init__).parameters.items() if name != "self"
    }
    assert defaults == {
        "backbone": "swin_large_patch4_window12_384",
        "backbone_args": None,
        "context_dim": 768,
        "num_heads": 8,
        "decoder_layers": 6,
        "decoder_ffn_dim": 1024,
        "decoder_dropout": 0.1,
        "decoder_attention": "spatial",
        "query_layers": 9,
        "query_ffn_dim": 2048,
        "num_global_queries": 4,
        "num_local_queries": 144,
        "position_aware": False,
        "pooled_dim": None,
        "image_mean": (0.0, 0.0, 0.0),
        "image_std": (1.0, 1.0, 1.0),
    }
    assert SeeCoder.__module__ == "seecoder.encoder"  # saved pipelines name the class by this path


@pytest.mark.parametrize(("position_aware", "query_count"), [(False, 71_130_624), (True, 71_130_624 + 1_243_392)])
def test_parameter_counts_at_the_real_size(position_aware, query_count):
    with torch.device("meta"):
        encoder = SeeCoder(position_aware=position_aware)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in encoder.named_children()}
    assert count == {"backbone": 195_201_204, "decoder": 27_783_168, "query_transformer": query_count}
    assert sum(parameter.numel() for parameter in encoder.trainable_parameters()) == 27_783_168 + query_count


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "`context_dim`=32 is not a multiple of `num_heads`=5"),
        ({"num_local_queries": 0}, "`num_local_queries`=0"),
        ({"query_layers": 0}, "`query_layers`=0"),
        ({"pooled_dim": 8, "num_global_queries": 0}, "`pooled_dim`=8 needs at least one global query"),
        ({"decoder_attention": "legacy"}, "`decoder_attention`='legacy' is unknown"),
        ({"image_mean": (0.5,)}, "`image_mean`=.* has 1 values; expected three"),
        ({"image_std": (1.0, 0.0, 1.0)}, "`image_std`=.* must be above zero"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        _encoder(**changes)


# -------------------------------------------------------------------------------------------------------- encoding


@torch.no_grad()
@pytest.mark.parametrize("attention", ["spatial", "released"])
def test_any_size_from_32_up_gives_the_same_shape(attention):
    encoder = _encoder(decoder_attention=attention, position_aware=True)
    for height, width in [(32, 32), (32, 200), (37, 53), (100, 36)]:
        context = encoder(_pixels(2, height, width))
        assert context.shape == (2, 8, 32)
        assert context.isfinite().all()


@pytest.mark.parametrize(
    ("pixels", "error", "message"),
    [
        (torch.rand(1, 3, 31, 64), ValueError, "`pixels` are 31x64; both sides must be at least 32"),
        (torch.rand(3, 64, 64), ValueError, r"`pixels` has shape \(3, 64, 64\); expected \(B, 3, H, W\)"),
        (torch.rand(1, 4, 64, 64), ValueError, "expected"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), TypeError, "`pixels` has dtype torch.uint8"),
    ],
)
def test_what_cannot_be_encoded_is_refused(pixels, error, message):
    with pytest.raises(error, match=message):
        _encoder()(pixels)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["spatial", "released"])
def test_one_picture_does_not_depend_on_the_others(attention):
    encoder = _encoder(decoder_attention=attention, position_aware=True)
    pixels = _pixels(3)
    together = encoder(pixels)
    for index in range(3):
        torch.testing.assert_close(encoder(pixels[index : index + 1])[0], together[index], rtol=0, atol=1e-5)
    permuted = encoder(pixels[[2, 0, 1]])
    torch.testing.assert_close(permuted, together[[2, 0, 1]], rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_two_attentions_share_weights_and_differ():
    spatial, released = _encoder(), _encoder(decoder_attention="released")
    released.load_state_dict(spatial.state_dict())
    assert (spatial(_pixels()) - released(_pixels())).abs().max() > 1e-3


@torch.no_grad()
def test_mean_and_std_are_applied_to_the_pixels():
    plain, standardised = _encoder(), _encoder(image_mean=(0.5, 0.4, 0.3), image_std=(0.2, 0.3, 0.4))
    mean, std = torch.tensor([0.5, 0.4, 0.3])[:, None, None], torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    torch.testing.assert_close(standardised(_pixels()), plain((_pixels() - mean) / std), rtol=0, atol=1e-5)


@torch.no_grad()
def test_pooled_is_a_linear_map_of_the_mean_global_query():
    encoder = _encoder(pooled_dim=5)
    output = encoder.encode(_pixels(2))
    assert isinstance(output, SeeCoderOutput)
    assert torch.equal(output.context, encoder(_pixels(2)))
    assert encoder.pooled_projection is not None
    assert output.pooled is not None
    torch.testing.assert_close(output.pooled, encoder.pooled_projection(output.context[:, :2].mean(1)))
    assert _encoder().encode(_pixels()).pooled is None


@pytest.mark.parametrize(
    ("backbone", "backbone_args", "levels"),
    [
        ("resnet10t", {"out_indices": (1, 2)}, 2),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}, 3),
        ("vit_tiny_patch16_224", {"embed_dim": 16, "depth": 1, "num_heads": 2}, 3),
    ],
)
def test_other_backbones_serve(backbone, backbone_args, levels, tmp_path):
    encoder = _encoder(backbone=backbone, backbone_args=backbone_args, position_aware=True)
    context = encoder(_pixels(2, 45, 61))
    assert context.shape == (2, 8, 32)
    assert len(encoder.decoder.level_embedding) == levels
    encoder.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(SeeCoder.from_pretrained(tmp_path)(_pixels(2, 45, 61)), context, rtol=0, atol=0)
    context.square().sum().backward()
    trained = dict(encoder.trainable_named_parameters())
    assert all(parameter.grad is not None for parameter in trained.values())
    assert not any(name.startswith("backbone.") for name in trained)
    assert any(name.startswith("feature_pyramid.") for name in trained) == (backbone == "vit_tiny_patch16_224")
    with pytest.raises(ValueError, match="is not a Swin of four stages"):
        encoder.save_official(tmp_path / "official.safetensors")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_follows_float32(dtype):
    encoder = _encoder(position_aware=True)
    full = encoder(_pixels())
    assert encoder.query_transformer.position_encoding is not None
    positions = encoder.query_transformer.position_encoding(8, 6)
    half = encoder.to(dtype)
    context = half(_pixels())  # pixels may stay in float32
    assert context.dtype == dtype
    assert (context.float() - full).norm() / full.norm() < 0.05
    assert torch.equal(half.query_transformer.position_encoding(8, 6), positions)


def test_a_half_precision_backbone_serves_full_precision_training():
    encoder = _encoder(position_aware=True).train()
    encoder.backbone.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        context = encoder(_pixels())
    context.float().square().mean().backward()
    assert encoder.query_transformer.queries.grad is not None
    assert encoder.query_transformer.queries.grad.dtype == torch.float32
    assert encoder(_pixels()).dtype == torch.float32


COMPILED = {"backbone_args": {**SWIN, "depths": (1, 2)}, "query_layers": 2, "decoder_layers": 1}


def test_torch_compile_takes_the_whole_graph():
    torch._dynamo.reset()
    encoder = _encoder(**COMPILED, position_aware=True, pooled_dim=4)
    compiled = torch.compile(encoder, fullgraph=True, backend="eager", dynamic=False)
    with torch.no_grad():
        torch.testing.assert_close(compiled(_pixels()), encoder(_pixels()))


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["spatial", "released"])
@pytest.mark.filterwarnings("ignore")
def test_torch_compile_trains_by_the_default_backend(attention):
    torch._dynamo.reset()
    encoder = _encoder(**COMPILED, decoder_attention=attention, decoder_dropout=0.0).train()
    compiled = torch.compile(encoder, fullgraph=True, dynamic=False)
    gradients = []
    for function in (encoder, compiled):
        encoder.zero_grad()
        (function(_pixels(1, 45)) * torch.arange(32)).mean().backward()
        gradients.append([parameter.grad.clone() for parameter in encoder.trainable_parameters()])  # type: ignore[union-attr]
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- jitter


def test_jitter_is_the_callers_draw():
    encoder = _encoder(position_aware=True)
    draws = [encoder.draw_position_jitter(torch.Generator().manual_seed(7)) for _ in range(2)]
    assert draws[0] is not None
    assert torch.equal(*draws)
    assert draws[0].shape == (3, 2)
    each = encoder.draw_position_jitter(torch.Generator().manual_seed(7), batch_size=200)
    assert each is not None
    assert each.shape == (200, 3, 2)
    assert -0.5 <= each.min() < -0.48
    assert 0.48 < each.max() <= 0.5
    with torch.no_grad():
        still, moved = encoder(_pixels()), encoder(_pixels(), draws[0])
    assert (still - moved).abs().max() > 1e-4
    with pytest.raises(ValueError, match="`position_jitter` has shape"):
        encoder(_pixels(2), each)


def test_an_encoder_without_positions_has_no_jitter():
    encoder = _encoder()
    assert encoder.draw_position_jitter() is None
    with pytest.raises(ValueError, match="`position_jitter` has no effect"):
        encoder(_pixels(), torch.zeros(3, 2))


# -------------------------------------------------------------------------------------------------------- training


def test_the_backbone_is_frozen_and_stays_in_eval_mode():
    encoder = _encoder(backbone_args={**SWIN, "drop_path_rate": 0.5})
    encoder.train()
    assert encoder.decoder.training
    assert not any(module.training for module in encoder.backbone.modules())
    assert not any(parameter.requires_grad for parameter in encoder.backbone.parameters())
    first, second = encoder.backbone(_pixels()), encoder.backbone(_pixels())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    encoder.freeze_backbone(False)
    assert all(module.training for module in encoder.backbone.modules())
    assert any(name.startswith("backbone.") for name, _ in encoder.trainable_named_parameters())
    names = {name for name, _ in encoder.trainable_named_parameters()}
    assert not any(name.startswith("backbone.norm0") for name in names)  # no path to the context


@pytest.mark.parametrize("attention", ["spatial", "released"])
def test_gradient_reaches_exactly_the_trainable_parameters(attention):
    encoder = _encoder(decoder_attention=attention, position_aware=True, pooled_dim=3)
    output = encoder.encode(_pixels())
    assert output.pooled is not None
    ((output.context * torch.randn(8, 32)).sum() + output.pooled.sum()).backward()
    trainable = {name for name, _ in encoder.trainable_named_parameters()}
    assert trainable == {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    assert trainable == {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    for name, parameter in encoder.trainable_named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.any() or name.endswith("key.bias"), name


def test_only_the_last_layer_of_new_positions_gets_a_gradient():
    torch.manual_seed(0)
    encoder = SeeCoder(**TINY, position_aware=True)  # type: ignore[arg-type]
    (encoder(_pixels()) * torch.randn(8, 32)).sum().backward()
    mlp = encoder.query_transformer.position_encoding.mlp  # type: ignore[union-attr]
    assert not mlp[0].weight.grad.any()
    assert not mlp[2].weight.grad.any()
    assert mlp[4].weight.grad.any()


def test_weight_decay_does_not_touch_idle_parameters():
    encoder = _encoder(decoder_attention="released").train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    optimizer = torch.optim.AdamW(encoder.trainable_parameters(), lr=1e-2, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        (encoder(_pixels()) * torch.arange(32)).mean().backward()
        optimizer.step()
    for name, value in encoder.state_dict().items():
        frozen = name.startswith("backbone.") or ("decoder" in name and (".query." in name or ".key." in name))
        assert torch.equal(value, before[name]) == frozen, name


def test_parameter_groups_decay_matrices_only_and_miss_nothing():
    encoder = _encoder(position_aware=True)
    decayed, kept = encoder.parameter_groups(0.01)
    assert decayed["weight_decay"] == 0.01
    assert kept["weight_decay"] == 0
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    both = [names[id(parameter)] for parameter in (*decayed["params"], *kept["params"])]
    assert sorted(both) == sorted(name for name, _ in encoder.trainable_named_parameters())
    for parameter in decayed["params"]:
        assert names[id(parameter)].endswith("weight")
        assert parameter.ndim > 1
    kept_names = {names[id(parameter)] for parameter in kept["params"]}
    assert {
        "query_transformer.queries",
        "decoder.level_embedding",
        "decoder.layers.0.attention_norm.weight",
    } <= kept_names


@pytest.mark.parametrize("attention", ["spatial", "released"])
def test_gradient_checkpointing_changes_no_loss_and_no_gradient(attention):
    results = []
    for checkpointed in (False, True):
        encoder = _encoder(decoder_attention=attention, position_aware=True).train()
        encoder.freeze_backbone(False)
        if checkpointed:
            encoder.enable_gradient_checkpointing()
            assert encoder.is_gradient_checkpointing
        torch.manual_seed(5)  # dropout is on and must be the same in the recomputation
        loss = (encoder(_pixels()) * torch.arange(32)).mean()
        loss.backward()
        results.append((loss, [parameter.grad for parameter in encoder.trainable_parameters()]))
    (loss, gradients), (checkpointed_loss, checkpointed_gradients) = results
    assert torch.equal(loss, checkpointed_loss)
    for left, right in zip(gradients, checkpointed_gradients, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------------------------------------- backbone weights


def _timm_swin(**changes: object) -> torch.nn.Module:
    torch.manual_seed(3)
    return timm.create_model(
        "swin_large_patch4_window12_384", **{**SWIN, **changes}, always_partition=True, num_classes=4
    )


def test_pretrained_backbone_weights_are_loaded_and_reported(tmp_path):
    encoder = _encoder()
    norms = {f"norm{index}.{leaf}" for index in range(4) for leaf in ("weight", "bias")}
    before = {key: value.clone() for key, value in encoder.backbone.state_dict().items() if key in norms}
    source = _timm_swin().state_dict()
    coverage = encoder.load_backbone_weights(source)
    assert set(coverage.missing) == norms
    assert set(coverage.unused) == {"norm.weight", "norm.bias", "head.fc.weight", "head.fc.bias"}
    state = encoder.backbone.state_dict()
    assert all(torch.equal(state[key], source[key]) for key in coverage.loaded)
    assert all(torch.equal(state[key], value) for key, value in before.items())
    assert len(coverage.loaded) + len(norms) == len(state)

    save_file(source, tmp_path / "model.safetensors")
    again = _encoder()
    assert again.load_backbone_weights(tmp_path / "model.safetensors") == coverage
    assert again.load_backbone_weights(encoder.backbone.state_dict()).missing == ()


def test_backbone_weights_that_do_not_cover_or_fit_change_nothing():
    encoder = _encoder()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    partial = {key: value for key, value in _timm_swin().state_dict().items() if "layers.2.blocks.1." not in key}
    with pytest.raises(WeightsError, match=r"lacks 13 of the backbone's .*first: layers\.2\.blocks\.1\."):
        encoder.load_backbone_weights(partial)
    with pytest.raises(WeightsError, match="relative_position_bias_table"):
        encoder.load_backbone_weights(_timm_swin(window_size=5).state_dict())
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


# --------------------------------------------------------------------------------------------------- saved folders


@pytest.mark.parametrize("changes", [{}, {"position_aware": True, "decoder_attention": "released", "pooled_dim": 5}])
def test_saved_folder_comes_back_identical(changes, tmp_path):
    encoder = _encoder(**changes)
    encoder.save_pretrained(tmp_path)
    loaded = SeeCoder.from_pretrained(tmp_path)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.backbone.parameters())
    state = encoder.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    assert loaded.config["decoder_attention"] == encoder.config["decoder_attention"]
    with torch.no_grad():
        assert torch.equal(loaded(_pixels()), encoder(_pixels()))
    loaded.save_pretrained(tmp_path / "again")
    name = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_half_precision_on_loading_keeps_positions_in_float32(tmp_path):
    encoder = _encoder(position_aware=True)
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
        (lambda t: t.pop("decoder.level_embedding"), r"1 weights of .* are missing \(first: decoder.level_embedding\)"),
        (lambda t: t.pop("backbone.norm0.bias"), "are missing"),
        (lambda t: t.update(extra=torch.zeros(2)), r"1 weights of .* are unexpected \(first: extra\)"),
        (
            lambda t: t.update({"query_transformer.queries": torch.zeros(9, 32)}),
            "another shape .*query_transformer.queries",
        ),
    ],
)
def test_a_folder_that_does_not_fit_exactly_is_refused(change, message, tmp_path):
    _encoder().save_pretrained(tmp_path)
    _rewrite(tmp_path, change)
    for options in ({}, {"low_cpu_mem_usage": True}):
        with pytest.raises(WeightsError, match=message):
            SeeCoder.from_pretrained(tmp_path, **options)


def test_a_configuration_of_the_other_variant_is_refused(tmp_path):
    _encoder().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "position_aware": True}))
    with pytest.raises(WeightsError, match=r"6 weights .* are missing .*position-aware encoder"):
        SeeCoder.from_pretrained(tmp_path)


def test_pickles_are_neither_read_nor_written(tmp_path):
    encoder = _encoder()
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
