"""Swin on timm's modules and weights, with the published encoder's arithmetic at every picture size.

Swin Transformer, arXiv 2103.14030; the detection variant in SHI-Labs/Prompt-Free-Diffusion@f4295fc
(lib/model_zoo/swin.py). timm's own forward differs in four ways: it rolls before it pads, shrinks windows that are
larger than the map, refuses pictures that are not a multiple of the patch, and normalises no intermediate map. At 512
pixels its last map is off by a quarter. Here timm supplies the layers and their parameters, this file how they are put
together:

* pixels are padded to a multiple of the patch size;
* a block normalises, pads right and bottom to a multiple of the window (padding is zero *after* the norm and is
  attended to), shifts, and cuts windows; odd blocks shift even where the map is a single window;
* every stage's map goes through a LayerNorm of its own.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from seecoder.encoder.attention import CheckpointedModule

# What makes timm build the windows of the published encoder; any other value would change the function silently.
_FIXED = {"always_partition": True, "strict_img_size": False, "num_classes": 0}
_MASKED = -100.0  # added to the logit of a pair that the shift brought together from two sides of the map


def shift_masks(window: tuple[int, int], shift: tuple[int, int]) -> torch.Tensor:
    """Masks of shifted windows: only those at the bottom and right edge hold regions that were not neighbours.

    That makes four kinds of window whatever the size of the map, so that the masks can be computed once.

    Args:
        window: Height and width of a window, in cells.
        shift: Cells by which the map was rolled up and left.

    Returns:
        (4, N, N) for N = height * width of the window, 0 or -100, to be added to the logits; index 2 * (bottom row of
        windows) + (right column of windows).
    """
    below = torch.arange(window[0]) >= window[0] - shift[0]
    beyond = torch.arange(window[1]) >= window[1] - shift[1]
    masks = []
    for bottom in (False, True):
        for right in (False, True):
            region = 2 * (below & bottom)[:, None].int() + (beyond & right)[None, :].int()
            cells = region.flatten()
            masks.append((cells[:, None] != cells[None, :]) * _MASKED)
    return torch.stack(masks)


class SwinBackbone(CheckpointedModule):
    """A timm Swin (`swin_*`, `swin_s3_*`) as the published encoder runs it.

    Args:
        name: A model name of timm.
        overrides: Arguments for timm's `SwinTransformer` (`embed_dim`, `depths`, `num_heads`, `window_size`, ...).
            Stochastic depth is off unless `drop_path_rate` is given: a frozen backbone must not depend on the training
            flag.

    Attributes:
        channels: Channels of each map, finest first.
        strides: Pixels per cell of each map.

    Raises:
        ValueError: An override that would change the function (`always_partition`, `strict_img_size`, `num_classes`).
    """

    is_plain = False

    def __init__(self, name: str, overrides: Mapping[str, Any]) -> None:
        super().__init__()
        if fixed := sorted(set(overrides) & set(_FIXED)):
            raise ValueError(f"`backbone_args` sets {fixed}, which the Swin encoder fixes; leave it out.")
        model = timm.create_model(name, pretrained=False, **{"drop_path_rate": 0.0, **overrides, **_FIXED})
        if not isinstance(model, SwinTransformer):
            raise TypeError(f"`backbone`={name!r} is not a Swin of timm but a {type(model).__name__}.")
        self.patch_embed = model.patch_embed
        self.layers = model.layers
        self.channels: tuple[int, ...] = tuple(info["num_chs"] for info in model.feature_info)
        self.strides: tuple[int, ...] = tuple(info["reduction"] for info in model.feature_info)
        for index, channels in enumerate(self.channels):
            self.add_module(f"norm{index}", nn.LayerNorm(channels, eps=1e-5))
            # Fixed per stage; a stage of one block never shifts, but one mask more costs nothing.
            window = cast(Any, self.layers[index]).blocks[0].window_size
            masks = shift_masks(window, (window[0] // 2, window[1] // 2))
            self.register_buffer(f"shift_masks{index}", masks, persistent=False)

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Compute the maps of all stages.

        Args:
            pixels: (B, 3, H, W).

        Returns:
            (B, C_i, ceil(H / stride_i), ceil(W / stride_i)) for every stage, finest first.
        """
        x = self.patch_embed(pad_to_multiple(pixels, self.strides[0]))  # (B, H, W, C) from here on
        maps = []
        for index, stage in enumerate(cast(Any, self.layers)):
            x = stage.downsample(x)
            for block in stage.blocks:
                masks = getattr(self, f"shift_masks{index}") if any(block.shift_size) else None
                x = self.run(partial(_block, block), x, masks)
            normalised = getattr(self, f"norm{index}")(x)
            maps.append(normalised.permute(0, 3, 1, 2).contiguous())
        return maps

    def idle_parameters(self, num_levels: int) -> list[nn.Parameter]:
        """Parameters without effect on the last `num_levels` maps: the norms of the maps before those."""
        unused = range(max(len(self.channels) - num_levels, 0))
        return [parameter for index in unused for parameter in getattr(self, f"norm{index}").parameters()]


def pad_to_multiple(pixels: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pad pixels (..., H, W) with zeros at the bottom and the right until both sides are multiples of `multiple`."""
    bottom, right = _missing(pixels.shape[-2], multiple), _missing(pixels.shape[-1], multiple)
    return F.pad(pixels, (0, right, 0, bottom)) if bottom or right else pixels


def _missing(size: int, multiple: int) -> int:
    # Not `-size % multiple`: torch 2.14 cannot compile the remainder of a negative size that changes.
    return (multiple - size % multiple) % multiple


def _block(block: Any, x: torch.Tensor, masks: torch.Tensor | None) -> torch.Tensor:
    """Run timm's `SwinTransformerBlock` on a map (B, H, W, C), with padding before the shift."""
    x = x + block.drop_path1(_shifted_window_attention(block, block.norm1(x), masks))
    return x + block.drop_path2(block.mlp(block.norm2(x)))


def _shifted_window_attention(block: Any, x: torch.Tensor, masks: torch.Tensor | None) -> torch.Tensor:
    height, width = x.shape[1:3]
    window_height, window_width = block.window_size
    x = F.pad(x, (0, 0, 0, _missing(width, window_width), 0, _missing(height, window_height)))
    if masks is not None:
        x = torch.roll(x, shifts=(-block.shift_size[0], -block.shift_size[1]), dims=(1, 2))

    # (B, rows, window_height, columns, window_width, C) -> (B, rows, columns, N, C)
    windows = x.unflatten(1, (-1, window_height)).unflatten(3, (-1, window_width)).transpose(2, 3).flatten(3, 4)
    attended = _window_attention(block.attn, windows, masks)
    x = attended.unflatten(3, (window_height, window_width)).transpose(2, 3).flatten(3, 4).flatten(1, 2)

    if masks is not None:
        x = torch.roll(x, shifts=(block.shift_size[0], block.shift_size[1]), dims=(1, 2))
    return x[:, :height, :width].contiguous()


def _window_attention(attention: Any, windows: torch.Tensor, masks: torch.Tensor | None) -> torch.Tensor:
    """Attend inside windows (B, rows, columns, N, C) by timm's `WindowAttention`.

    `masks` are those of `shift_masks`, or None without a shift.
    """
    qkv = attention.qkv(windows).unflatten(-1, (3, attention.num_heads, -1))
    qkv = qkv.permute(4, 0, 1, 2, 5, 3, 6)  # (3, B, rows, columns, heads, N, C / heads)
    cells = attention.relative_position_index.shape[0]
    bias = attention.relative_position_bias_table[attention.relative_position_index.flatten()]
    bias = bias.view(cells, cells, -1).permute(2, 0, 1).unsqueeze(0).to(qkv.dtype)  # (1, heads, N, N)
    attend = partial(_attend, attention, bias)
    if masks is None:
        x = attend(qkv, None)
    else:
        # Window kinds one by one: a mask a window would cost gigabytes on large pictures.
        inner, last = slice(0, -1), slice(-1, None)
        top = torch.cat([attend(qkv[:, :, inner, inner], masks[0]), attend(qkv[:, :, inner, last], masks[1])], dim=2)
        bottom = torch.cat([attend(qkv[:, :, last, inner], masks[2]), attend(qkv[:, :, last, last], masks[3])], dim=2)
        x = torch.cat([top, bottom], dim=1)
    return attention.proj_drop(attention.proj(x))


def _attend(attention: Any, bias: torch.Tensor, qkv: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Attend in windows that share one mask: (3, B, rows, columns, heads, N, D) to (B, rows, columns, N, C)."""
    batch, rows, columns, heads, cells, head_dim = qkv.shape[1:]
    if rows == 0 or columns == 0:
        return qkv.new_zeros(batch, rows, columns, cells, heads * head_dim)
    query, key, value = qkv.flatten(1, 3)
    x = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=bias if mask is None else bias + mask.to(bias.dtype),
        dropout_p=attention.attn_drop.p if attention.training else 0.0,
        scale=attention.scale,
    )  # (B * rows * columns, heads, N, D)
    return x.transpose(1, 2).flatten(2).unflatten(0, (batch, rows, columns))
