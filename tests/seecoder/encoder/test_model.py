import inspect

import pytest
import timm
import torch
from safetensors.torch import save_file

from seecoder import SeeCoder, WeightsError
from seecoder.encoder.model import SeeCoderOutput
from tests.fixtures.encoders import SWIN, TINY, make_encoder, make_pixels

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
        "positions_in_values": False,
        "pooled_dim": None,
        "image_mean": (0.0, 0.0, 0.0),
        "image_std": (1.0, 1.0, 1.0),
        "image_size": 512,
        "guidance_scale": 2.0,
        "learned_negative": False,
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
        ({"num_heads": 5}, "`context_dim`=32 must be a multiple of `num_heads`=5"),
        ({"num_local_queries": 0}, r"`num_local_queries`=0 of SeeCoder\(\) must be a whole number from 1 up"),
        ({"query_layers": 0}, r"`query_layers`=0 of SeeCoder\(\) must be a whole number from 1 up"),
        ({"pooled_dim": 8, "num_global_queries": 0}, "`num_global_queries`=0 must be from 1 up with `pooled_dim`=8"),
        ({"decoder_attention": "legacy"}, "`decoder_attention`='legacy' is unknown"),
        ({"positions_in_values": True}, "`positions_in_values`=True must come with `position_aware`=True"),
        ({"image_mean": (0.5,)}, "`image_mean`=.* must be three numbers, one a colour channel"),
        ({"image_std": (1.0, 0.0, 1.0)}, "`image_std`=.* must be three numbers above zero"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_encoder(**changes)


# -------------------------------------------------------------------------------------------------------- encoding


@torch.no_grad()
@pytest.mark.parametrize("attention", ["spatial", "released"])
def test_any_size_from_32_up_gives_the_same_shape(attention):
    encoder = make_encoder(decoder_attention=attention, position_aware=True)
    for height, width in [(32, 32), (32, 200), (37, 53), (100, 36)]:
        context = encoder(make_pixels(2, height, width))
        assert context.shape == (2, 8, 32)
        assert context.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("attention", ["spatial", "released"])
def test_one_picture_does_not_depend_on_the_others(attention):
    encoder = make_encoder(decoder_attention=attention, position_aware=True)
    pixels = make_pixels(3)
    together = encoder(pixels)
    for index in range(3):
        torch.testing.assert_close(encoder(pixels[index : index + 1])[0], together[index], rtol=0, atol=1e-5)
    permuted = encoder(pixels[[2, 0, 1]])
    torch.testing.assert_close(permuted, together[[2, 0, 1]], rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_two_attentions_share_weights_and_differ():
    spatial, released = make_encoder(), make_encoder(decoder_attention="released")
    released.load_state_dict(spatial.state_dict())
    assert (spatial(make_pixels()) - released(make_pixels())).abs().max() > 1e-3


@torch.no_grad()
def test_mean_and_std_are_applied_to_the_pixels():
    plain, standardised = make_encoder(), make_encoder(image_mean=(0.5, 0.4, 0.3), image_std=(0.2, 0.3, 0.4))
    mean, std = torch.tensor([0.5, 0.4, 0.3])[:, None, None], torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    torch.testing.assert_close(standardised(make_pixels()), plain((make_pixels() - mean) / std), rtol=0, atol=1e-5)


@torch.no_grad()
def test_pooled_is_a_linear_map_of_the_mean_global_query():
    encoder = make_encoder(pooled_dim=5)
    output = encoder.encode(make_pixels(2))
    assert isinstance(output, SeeCoderOutput)
    assert torch.equal(output.context, encoder(make_pixels(2)))
    assert encoder.pooled_projection is not None
    assert output.pooled is not None
    torch.testing.assert_close(output.pooled, encoder.pooled_projection(output.context[:, :2].mean(1)))
    assert make_encoder().encode(make_pixels()).pooled is None


@pytest.mark.parametrize(
    ("backbone", "backbone_args", "levels"),
    [
        ("resnet10t", {"out_indices": (1, 2)}, 2),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}, 3),
        ("vit_tiny_patch16_224", {"embed_dim": 16, "depth": 1, "num_heads": 2}, 3),
    ],
)
def test_other_backbones_serve(backbone, backbone_args, levels, tmp_path):
    encoder = make_encoder(backbone=backbone, backbone_args=backbone_args, position_aware=True)
    context = encoder(make_pixels(2, 45, 61))
    assert context.shape == (2, 8, 32)
    assert len(encoder.decoder.level_embedding) == levels
    encoder.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(SeeCoder.from_pretrained(tmp_path)(make_pixels(2, 45, 61)), context, rtol=0, atol=0)
    context.square().sum().backward()
    trained = dict(encoder.trainable_named_parameters())
    assert all(parameter.grad is not None for parameter in trained.values())
    assert not any(name.startswith("backbone.") for name in trained)
    assert any(name.startswith("feature_pyramid.") for name in trained) == (backbone == "vit_tiny_patch16_224")
    with pytest.raises(ValueError, match="must be a Swin of four stages"):
        encoder.save_official(tmp_path / "official.safetensors")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_follows_float32(dtype):
    encoder = make_encoder(position_aware=True)
    full = encoder(make_pixels())
    assert encoder.query_transformer.position_encoding is not None
    positions = encoder.query_transformer.position_encoding(8, 6)
    half = encoder.to(dtype)
    context = half(make_pixels())  # pixels may stay in float32
    assert context.dtype == dtype
    assert (context.float() - full).norm() / full.norm() < 0.05
    assert torch.equal(half.query_transformer.position_encoding(8, 6), positions)


def test_a_half_precision_backbone_serves_full_precision_training():
    encoder = make_encoder(position_aware=True).train()
    encoder.backbone.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        context = encoder(make_pixels())
    context.float().square().mean().backward()
    assert encoder.query_transformer.queries.grad is not None
    assert encoder.query_transformer.queries.grad.dtype == torch.float32
    assert encoder(make_pixels()).dtype == torch.float32


COMPILED = {"backbone_args": {**SWIN, "depths": (1, 2)}, "query_layers": 2, "decoder_layers": 1}


@pytest.mark.heavy
def test_torch_compile_takes_the_whole_graph():
    torch._dynamo.reset()
    encoder = make_encoder(**COMPILED, position_aware=True, pooled_dim=4)
    compiled = torch.compile(encoder, fullgraph=True, backend="eager", dynamic=False)
    with torch.no_grad():
        torch.testing.assert_close(compiled(make_pixels()), encoder(make_pixels()))


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["spatial", "released"])
@pytest.mark.filterwarnings("ignore")
def test_torch_compile_trains_by_the_default_backend(attention):
    torch._dynamo.reset()
    encoder = make_encoder(**COMPILED, decoder_attention=attention, decoder_dropout=0.0).train()
    compiled = torch.compile(encoder, fullgraph=True, dynamic=False)
    gradients = []
    for function in (encoder, compiled):
        encoder.zero_grad()
        (function(make_pixels(1, 45)) * torch.arange(32)).mean().backward()
        gradients.append([parameter.grad.clone() for parameter in encoder.trainable_parameters()])  # type: ignore[union-attr]
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- jitter


def test_jitter_is_the_callers_draw():
    encoder = make_encoder(position_aware=True)
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
        still, moved = encoder(make_pixels()), encoder(make_pixels(), draws[0])
    assert (still - moved).abs().max() > 1e-4
    with pytest.raises(ValueError, match="`position_jitter` of shape"):
        encoder(make_pixels(2), each)


def test_an_encoder_without_positions_has_no_jitter():
    encoder = make_encoder()
    assert encoder.draw_position_jitter() is None
    with pytest.raises(ValueError, match="`position_jitter` has no effect"):
        encoder(make_pixels(), torch.zeros(3, 2))


# -------------------------------------------------------------------------------------------------------- training


def test_the_backbone_is_frozen_and_stays_in_eval_mode():
    encoder = make_encoder(backbone_args={**SWIN, "drop_path_rate": 0.5})
    encoder.train()
    assert encoder.decoder.training
    assert not any(module.training for module in encoder.backbone.modules())
    assert not any(parameter.requires_grad for parameter in encoder.backbone.parameters())
    first, second = encoder.backbone(make_pixels()), encoder.backbone(make_pixels())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    encoder.freeze_backbone(False)
    assert all(module.training for module in encoder.backbone.modules())
    assert any(name.startswith("backbone.") for name, _ in encoder.trainable_named_parameters())
    names = {name for name, _ in encoder.trainable_named_parameters()}
    assert not any(name.startswith("backbone.norm0") for name in names)  # no path to the context


@pytest.mark.parametrize("attention", ["spatial", "released"])
def test_gradient_reaches_exactly_the_trainable_parameters(attention):
    encoder = make_encoder(decoder_attention=attention, position_aware=True, pooled_dim=3)
    output = encoder.encode(make_pixels())
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
    (encoder(make_pixels()) * torch.randn(8, 32)).sum().backward()
    mlp = encoder.query_transformer.position_encoding.mlp  # type: ignore[union-attr]
    assert not mlp[0].weight.grad.any()
    assert not mlp[2].weight.grad.any()
    assert mlp[4].weight.grad.any()


def test_weight_decay_does_not_touch_idle_parameters():
    encoder = make_encoder(decoder_attention="released").train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    optimizer = torch.optim.AdamW(encoder.trainable_parameters(), lr=1e-2, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        (encoder(make_pixels()) * torch.arange(32)).mean().backward()
        optimizer.step()
    for name, value in encoder.state_dict().items():
        frozen = name.startswith("backbone.") or ("decoder" in name and (".query." in name or ".key." in name))
        assert torch.equal(value, before[name]) == frozen, name


@pytest.mark.parametrize("attention", ["spatial", "released"])
def test_gradient_checkpointing_changes_no_loss_and_no_gradient(attention):
    results = []
    for checkpointed in (False, True):
        encoder = make_encoder(decoder_attention=attention, position_aware=True).train()
        encoder.freeze_backbone(False)
        if checkpointed:
            encoder.enable_gradient_checkpointing()
            assert encoder.is_gradient_checkpointing
        torch.manual_seed(5)  # dropout is on and must be the same in the recomputation
        loss = (encoder(make_pixels()) * torch.arange(32)).mean()
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
    encoder = make_encoder()
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
    again = make_encoder()
    assert again.load_backbone_weights(tmp_path / "model.safetensors") == coverage
    assert again.load_backbone_weights(encoder.backbone.state_dict()).missing == ()


def test_backbone_weights_that_do_not_cover_or_fit_change_nothing():
    encoder = make_encoder()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    partial = {key: value for key, value in _timm_swin().state_dict().items() if "layers.2.blocks.1." not in key}
    with pytest.raises(
        WeightsError,
        match=r"does not fit the backbone: 13 weights are missing \(layers\.2\.blocks\.1\..* 4 are unexpected",
    ):
        encoder.load_backbone_weights(partial)
    with pytest.raises(WeightsError, match="relative_position_bias_table"):
        encoder.load_backbone_weights(_timm_swin(window_size=5).state_dict())
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


# ----------------------------------------------------------------------------------------- masks, negative contexts


@pytest.mark.parametrize("attention", ["released", "spatial"])
def test_what_a_mask_leaves_out_has_no_influence(attention):
    encoder = make_encoder(decoder_attention=attention, position_aware=True)
    pixels, mask = make_pixels(), torch.zeros(1, 1, 64, 48)
    mask[..., :24] = 1.0
    other = torch.where(mask > 0, pixels, 1 - pixels)
    with torch.no_grad():
        seen = encoder.encode(pixels, mask=mask).context
        assert torch.equal(encoder.encode(other, mask=mask).context, seen)
        assert (encoder.encode(pixels, mask=1 - mask).context - seen).abs().max() > 1e-2
        whole = encoder(pixels)
        torch.testing.assert_close(encoder.encode(pixels, mask=torch.ones(1, 1, 64, 48)).context, whole)
        # A batch of masks is what each is alone.
        both = encoder.encode(pixels.expand(2, -1, -1, -1), mask=torch.cat([mask, torch.ones_like(mask)])).context
        torch.testing.assert_close(both, torch.cat([seen, whole]), atol=1e-5, rtol=1e-5)


def test_masked_places_are_not_attended_to():
    """Beyond the colour that fills them: the maps of a masked half do not reach the queries."""
    encoder = make_encoder(decoder_attention="spatial")
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32] = 1.0
    with torch.no_grad():
        levels = encoder.decoder(encoder.compute_maps(make_pixels(1, 64, 64)))
        seen = encoder.query_transformer(levels, mask=mask)
        for level in levels:
            level[..., level.shape[-1] // 2 :] += 3.0
        torch.testing.assert_close(encoder.query_transformer(levels, mask=mask), seen, atol=1e-4, rtol=1e-4)
        assert (encoder.query_transformer(levels) - seen).abs().max() > 1e-2


def test_a_learned_negative_context_is_saved_with_the_encoder(tmp_path):
    encoder = make_encoder()
    assert encoder.negative_context is None
    tokens = torch.rand(5, 32, generator=torch.Generator().manual_seed(2))
    encoder.set_negative_context(tokens)
    encoder.save_pretrained(tmp_path)
    again = SeeCoder.from_pretrained(tmp_path)
    assert torch.equal(again.negative_context, torch.cat([tokens, torch.zeros(3, 32)])[None])
    with torch.no_grad():
        assert torch.equal(again(make_pixels()), encoder(make_pixels()))
    with pytest.raises(ValueError, match=r"`negative_context` has no place in the released layout"):
        again.save_official(tmp_path / "released.safetensors")
    with pytest.raises(ValueError, match=r"`tokens` of shape \(1, 9, 32\) must be \(1, T, 32\), T up to 8"):
        encoder.set_negative_context(torch.zeros(9, 32))
