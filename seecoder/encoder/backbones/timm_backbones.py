"""Backbones: any pyramid of timm, and any plain ViT of timm, as a list of maps with the finest first.

Each takes pixels (B, 3, H, W), gives maps (B, C_i, H_i, W_i), and has their `channels` and `strides`, `is_plain` (there
is one map, which wants a pyramid), and `idle_parameters`. Three kinds, told apart by timm's registry alone:

* Swin: `seecoder.encoder.backbones.swin`, exact against the published encoder at every picture size.
* other pyramids (ResNet, ConvNeXt, ...): timm's `features_only` models as they are.
* plain ViTs: their last map, from which `SimpleFeaturePyramid` makes three levels.
"""

from collections.abc import Mapping
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from timm.models import is_model_in_modules
from torch import nn

from seecoder.encoder.backbones.swin import SwinBackbone, pad_to_multiple

# Modules of timm whose models have one resolution throughout and take pictures of any size when told to.
_PLAIN_MODULES = {"vision_transformer", "deit", "eva"}
_ANY_SIZE = {"dynamic_img_size": True, "dynamic_img_pad": True}


class PyramidBackbone(nn.Module):
    """A timm pyramid, as `features_only` gives it.

    Args:
        name: A model name of timm.
        overrides: Arguments for timm, `out_indices` among them.

    Raises:
        ValueError: The model has no pyramid.
    """

    is_plain = False

    def __init__(self, name: str, overrides: Mapping[str, Any]) -> None:
        super().__init__()
        try:
            self.body = timm.create_model(name, pretrained=False, features_only=True, **overrides)
        except (RuntimeError, AttributeError) as error:
            raise ValueError(f"`backbone`={name!r} gives no pyramid of maps ({error}); choose another.") from error
        info = cast(Any, self.body).feature_info
        self.channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")
        self.channels: tuple[int, ...] = tuple(info.channels())
        self.strides: tuple[int, ...] = tuple(info.reduction())
        if len(set(self.strides)) < len(self.strides):
            raise ValueError(
                f"`backbone`={name!r} has strides {self.strides}; expected a different one for every level."
            )

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Map pixels (B, 3, H, W), padded to whole cells of the coarsest map, to maps (B, C_i, H_i, W_i)."""
        # Half of timm's pyramids need whole cells at every level; padding makes all of them take any size.
        levels = self.body(pad_to_multiple(pixels, max(self.strides)))
        return [level.permute(0, 3, 1, 2).contiguous() for level in levels] if self.channels_last else levels

    def idle_parameters(self, num_levels: int) -> list[nn.Parameter]:
        """None: every map is computed from the one before."""
        return []


class PlainBackbone(nn.Module):
    """The last, normalised map of a plain ViT.

    Position embeddings are resampled to the picture, which is padded to whole patches.

    Args:
        name: A model name of timm.
        overrides: Arguments for timm.
    """

    is_plain = True

    def __init__(self, name: str, overrides: Mapping[str, Any]) -> None:
        super().__init__()
        model = timm.create_model(name, pretrained=False, **{**_ANY_SIZE, **overrides, "num_classes": 0})
        info = cast(Any, model).feature_info[-1]
        self.body = model
        self.channels: tuple[int, ...] = (info["num_chs"],)
        self.strides: tuple[int, ...] = (info["reduction"],)

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Map pixels (B, 3, H, W) to one map (B, C, ceil(H / stride), ceil(W / stride))."""
        return cast(Any, self.body).forward_intermediates(
            pixels, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )

    def idle_parameters(self, num_levels: int) -> list[nn.Parameter]:
        """None: there is one map."""
        return []


class SimpleFeaturePyramid(nn.Module):
    """Three levels from the one map of a plain ViT: twice as fine (transposed convolution), as it is, half as fine.

    "Exploring Plain Vision Transformer Backbones for Object Detection", arXiv 2203.16527, Sec. 3, without the closing
    convolutions: the decoder projects every level anyway. It is trained with the decoder; no pretrained weights exist
    for it.

    Args:
        channels: Channels of the ViT's map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels: tuple[int, ...] = (channels // 2, channels, channels)
        self.finer = nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2)

    def forward(self, levels: list[torch.Tensor]) -> list[torch.Tensor]:
        """Map [(B, C, H, W)] to [(B, C/2, 2H, 2W), (B, C, H, W), (B, C, ceil(H/2), ceil(W/2))]."""
        (level,) = levels
        return [self.finer(level), level, F.max_pool2d(level, kernel_size=2, stride=2, ceil_mode=True)]


def build_backbone(name: str, overrides: Mapping[str, Any] | None) -> SwinBackbone | PyramidBackbone | PlainBackbone:
    """Build a backbone with random weights; nothing is downloaded.

    Args:
        name: A model name of timm, with or without a weight tag (`timm.list_models()`).
        overrides: Arguments for timm's constructor that differ from the model's own.

    Raises:
        ValueError: Timm does not know the name, `pretrained` was given, or the model has no maps to offer.
    """
    overrides = dict(overrides or {})
    if "pretrained" in overrides:
        raise ValueError("`backbone_args` sets 'pretrained'; call `load_backbone_weights` on the encoder instead.")
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        raise ValueError(f"`backbone`={name!r} is not a model of timm {timm.__version__}; see `timm.list_models()`.")
    if is_model_in_modules(architecture, ["swin_transformer"]):
        return SwinBackbone(name, overrides)
    if is_model_in_modules(architecture, _PLAIN_MODULES):
        return PlainBackbone(name, overrides)
    return PyramidBackbone(name, overrides)
