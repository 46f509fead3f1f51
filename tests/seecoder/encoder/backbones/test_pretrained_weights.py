import pytest
import timm
import torch
from transformers import SwinBackbone as TransformersSwin
from transformers import SwinConfig

from seecoder.encoder.backbones.pretrained_weights import _unwrap, load_pretrained, match_backbone_weights
from seecoder.encoder.backbones.timm_backbones import build_backbone
from seecoder.weights.safetensors_files import WeightsError

NAME = "swin_tiny_patch4_window7_224"
SIZE = {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4), "window_size": 4}
NORMS = tuple(sorted(f"norm{index}.{leaf}" for index in range(4) for leaf in ("weight", "bias")))


def _timm_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return timm.create_model(NAME, **SIZE, num_classes=7, always_partition=True).state_dict()


def _microsoft_state() -> dict[str, object]:
    """Microsoft's layout: downsampling in the stage before, index tables and masks kept, all under "model"."""
    tensors = {}
    for key, value in _timm_state().items():
        if ".downsample." in key:
            _, stage, rest = key.split(".", 2)
            key = f"layers.{int(stage) - 1}.{rest}"
        tensors[key.replace("head.fc", "head")] = value
    tensors["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
    tensors["layers.2.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    return {"model": tensors, "epoch": 3}


def test_timm_and_microsoft_weights_cover_all_but_the_output_norms():
    target = build_backbone(NAME, SIZE).state_dict()
    expected = _timm_state()
    for source in (expected, _microsoft_state(), {"state_dict": {f"module.{k}": v for k, v in expected.items()}}):
        matched, coverage = match_backbone_weights(target, _unwrap(source))
        assert coverage.missing == NORMS
        assert set(coverage.unused) - {"head.weight", "head.bias"} <= {
            "norm.weight",
            "norm.bias",
            "head.fc.weight",
            "head.fc.bias",
        }
        assert len(coverage.unused) == 4
        assert set(matched) | set(NORMS) == set(target)
        for key, value in matched.items():
            assert torch.equal(value, expected[key]), key


@torch.no_grad()
def test_transformers_weights_give_the_same_maps():
    torch.manual_seed(0)
    config = SwinConfig(
        embed_dim=8,
        depths=[1, 1, 2, 1],
        num_heads=[1, 2, 2, 4],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        drop_path_rate=0.0,
    )
    theirs = TransformersSwin(config).eval()
    for parameter in theirs.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    ours = build_backbone(NAME, SIZE).eval()
    matched, coverage = match_backbone_weights(ours.state_dict(), theirs.state_dict())
    assert coverage.missing == ()
    ours.load_state_dict(matched)
    picture = torch.rand(1, 3, 50, 70)
    for left, right in zip(ours(picture), theirs(picture).feature_maps, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


def test_older_transformers_names_are_known():
    key = "swin.encoder.layers.2.blocks.1.attention.self.{}.weight"
    source = {key.format(part): torch.full((32, 32), float(row)) for row, part in enumerate(("query", "key", "value"))}
    source["swin.encoder.layers.2.blocks.1.attention.output.dense.bias"] = torch.ones(32)
    source["swin.encoder.layers.0.downsample.reduction.weight"] = torch.ones(16, 32)
    source["swin.embeddings.patch_embeddings.projection.bias"] = torch.ones(8)
    source["swin.encoder.layers.0.blocks.0.intermediate.dense.bias"] = torch.ones(32)
    source["swin.encoder.layers.0.blocks.0.output.dense.bias"] = torch.ones(8)
    table = "encoder.layers.0.blocks.0.attention.self.relative_position_bias_table"
    source[table] = torch.ones(49, 1)
    matched, coverage = match_backbone_weights(build_backbone(NAME, SIZE).state_dict(), source)
    assert coverage.unused == ()
    assert matched["layers.2.blocks.1.attn.qkv.weight"][:, 0].tolist() == [0.0] * 32 + [1.0] * 32 + [2.0] * 32
    assert set(matched) == {
        "layers.2.blocks.1.attn.qkv.weight",
        "layers.2.blocks.1.attn.proj.bias",
        "layers.1.downsample.reduction.weight",
        "patch_embed.proj.bias",
        "layers.0.blocks.0.mlp.fc1.bias",
        "layers.0.blocks.0.mlp.fc2.bias",
        "layers.0.blocks.0.attn.relative_position_bias_table",
    }


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("resnet10t", {}),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}),
        ("vit_tiny_patch16_224", {"embed_dim": 16, "depth": 1, "num_heads": 2}),
    ],
)
def test_classifier_weights_of_other_models_cover_their_backbone(name, overrides):
    source = timm.create_model(name, **overrides, num_classes=5).state_dict()
    _, coverage = match_backbone_weights(build_backbone(name, overrides).state_dict(), source)
    assert coverage.missing == ()
    assert coverage.unused


def test_entries_that_are_no_tensors_are_refused():
    with pytest.raises(TypeError, match="`source` holds 1 entries that are no tensors"):
        load_pretrained(build_backbone(NAME, SIZE), {"model": {"weight": torch.zeros(1), "epoch": 3}}, name=NAME)


@pytest.mark.parametrize(
    ("name", "size", "more", "named"),
    [
        (NAME, SIZE, {"depths": (1, 1, 4, 1)}, "layers.2.blocks.2"),
        ("resnet10t", {"layers": (1, 1, 1, 1)}, {"layers": (2, 1, 1, 1)}, "layer1.1"),
        ("convnext_atto", {"depths": (1, 1, 1, 1)}, {"depths": (1, 2, 1, 1)}, "stages.1.blocks.1"),
        ("vit_tiny_patch16_224", {"depth": 1, "embed_dim": 12}, {"depth": 2}, "blocks.1"),
        ("vit_tiny_patch16_224", {"depth": 1, "embed_dim": 12}, {"reg_tokens": 2}, "reg_token"),
    ],
)
def test_a_networks_weights_are_not_cut_down_to_a_smaller_ones(name, size, more, named):
    backbone = build_backbone(name, size)
    load_pretrained(backbone, timm.create_model(name, **size).state_dict(), name=name)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(WeightsError, match=rf"unexpected \({named}.*Take weights of {name}\."):
        load_pretrained(backbone, timm.create_model(name, **{**size, **more}).state_dict(), name=name)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items()), "nothing is loaded"


def test_stages_that_a_pyramid_was_told_to_leave_out_are_not_missed():
    source = timm.create_model("convnext_atto", depths=(1, 1, 1, 1)).state_dict()
    backbone = build_backbone("convnext_atto", {"depths": (1, 1, 1, 1), "out_indices": (0, 1)})
    coverage = load_pretrained(backbone, source, name="convnext_atto")
    assert coverage.missing == ()
    assert any(key.startswith("stages.3.") for key in coverage.unused)
