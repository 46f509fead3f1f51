import pytest
import torch

from seecoder.encoder.backbones.swin import SwinBackbone
from seecoder.encoder.backbones.timm_backbones import (
    PlainBackbone,
    PyramidBackbone,
    SimpleFeaturePyramid,
    build_backbone,
)

SMALL_SWIN = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
SMALL_VIT = {"embed_dim": 16, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "overrides", "kind"),
    [
        ("swin_tiny_patch4_window7_224", SMALL_SWIN, SwinBackbone),
        ("swin_large_patch4_window12_384.ms_in22k", SMALL_SWIN, SwinBackbone),
        ("resnet10t", {}, PyramidBackbone),
        ("vit_tiny_patch16_224", SMALL_VIT, PlainBackbone),
    ],
)
def test_kind_follows_the_name(name, overrides, kind):
    with torch.device("meta"):
        assert type(build_backbone(name, overrides)) is kind


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("resnet10t", {"out_indices": (1, 2, 3)}),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}),
        ("swinv2_tiny_window8_256", {**SMALL_SWIN, "strict_img_size": False}),  # channels last, whole patches only
        ("vit_tiny_patch16_224", SMALL_VIT),
    ],
)
@torch.no_grad()
def test_maps_of_any_picture_have_the_announced_channels_and_strides(name, overrides):
    backbone = build_backbone(name, overrides).eval()
    assert list(backbone.strides) == sorted(backbone.strides)
    for height, width in [(32, 32), (37, 53), (96, 64)]:
        maps = backbone(torch.rand(2, 3, height, width))
        coarsest = max(backbone.strides)
        padded = [-(-side // coarsest) * coarsest for side in (height, width)]
        for level, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
            assert level.shape == (2, channels, padded[0] // stride, padded[1] // stride)


@torch.no_grad()
def test_a_pyramid_is_timms_own_where_no_padding_is_needed():
    backbone = build_backbone("resnet10t", {"out_indices": (1, 2, 3)}).eval()
    picture = torch.rand(1, 3, 64, 96)
    for ours, theirs in zip(backbone(picture), backbone.body(picture), strict=True):
        assert torch.equal(ours, theirs)


def test_simple_pyramid_doubles_keeps_and_halves():
    pyramid = SimpleFeaturePyramid(8)
    level = torch.randn(2, 8, 5, 3)
    fine, same, coarse = pyramid([level])
    assert fine.shape == (2, 4, 10, 6)
    assert same is level
    assert coarse.shape == (2, 8, 3, 2)
    assert pyramid.channels == (4, 8, 8)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("swin_enormous", {}, "`backbone`='swin_enormous' is not a model of timm"),
        ("resnet10t", {"pretrained": True}, "`backbone_args` sets 'pretrained'; call `load_backbone_weights`"),
        ("mixer_s32_224", {}, "`backbone`='mixer_s32_224' "),
    ],
)
def test_what_cannot_be_built_says_why(name, overrides, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        build_backbone(name, overrides)
