"""The decoder: maps of three resolutions talk to each other and come back at one width.

"Prompt-Free Diffusion", arXiv 2305.16223, Sec. 3.2. The released code (SHI-Labs/Prompt-Free-Diffusion@f4295fc) differs
from the paper in its attention; `Decoder` has both.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import nn

from seecoder.encoder.attention import Attention, CheckpointedModule, FeedForward, key_bias

DecoderAttention = Literal["spatial", "released"]


class DecoderLayer(nn.Module):
    """One post-norm transformer layer over the positions of all levels.

    Args:
        dim: Width of the tokens.
        num_heads: Heads of the attention.
        ffn_dim: Hidden width of the feed-forward part.
        dropout: In the attention weights, after the attention, inside and after the feed-forward part.
        attention: "spatial" over all positions, or "released": each position attends to itself alone.
    """

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float, attention: DecoderAttention) -> None:
        super().__init__()
        self.is_spatial = attention == "spatial"
        self.attention = Attention(dim, num_heads, dropout)
        self.attention_norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, ffn_dim, dropout)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        if not self.is_spatial:
            # They exist only to be written back as they were read; no optimiser may take them.
            self.attention.query.requires_grad_(False)
            self.attention.key.requires_grad_(False)

    def forward(self, tokens: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Map `tokens` (B, N, dim) to (B, N, dim); `bias` (B, 1, 1, N) adds to the logits of a spatial attention."""
        if self.is_spatial:
            attended = self.attention(tokens, tokens, tokens, bias)
        else:
            attended = self.attention.attend_to_itself(tokens)
        tokens = self.attention_norm(tokens + self.dropout(attended))
        return self.feed_forward_norm(tokens + self.dropout(self.feed_forward(tokens)))


class _Projection(nn.Module):
    """A 1x1 convolution and a GroupNorm, initialised as published: with a bias Xavier's way, without Kaiming's."""

    def __init__(self, in_channels: int, dim: int, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, dim, kernel_size=1, bias=bias)
        # 32 groups as published; widths that 32 does not divide get the largest number of groups that works.
        self.norm = nn.GroupNorm(math.gcd(32, dim), dim)
        if self.conv.bias is None:
            nn.init.kaiming_uniform_(self.conv.weight, a=1)
        else:
            nn.init.xavier_uniform_(self.conv.weight)
            nn.init.zeros_(self.conv.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(features))


class Decoder(CheckpointedModule):
    """Project every level to one width, run the transformer over all positions at once, add the raw levels back.

    Two attentions share one set of weights:

    * "spatial" is self-attention over the positions of all levels, as the paper describes it.
    * "released" is what the released code computes for one picture: its attention runs over the *batch* axis, so that
      each position sees only itself. Here that function holds for any batch, whatever else is in it. The query and key
      matrices have no effect then; they are kept for the round trip to the released files, need no gradient, and are
      listed by `idle_parameters`.

    Args:
        in_channels: Channels of each level, finest level first.
        dim: Width of the tokens and of the maps that come out.
        num_heads: Heads of the attention.
        num_layers: Number of transformer layers.
        ffn_dim: Hidden width of their feed-forward part.
        dropout: Probability, in training.
        attention: "spatial" or "released".

    Raises:
        ValueError: `attention` is neither.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        dim: int,
        num_heads: int,
        num_layers: int,
        ffn_dim: int,
        dropout: float,
        attention: DecoderAttention,
    ) -> None:
        super().__init__()
        if attention not in get_args(DecoderAttention):
            raise ValueError(f'`decoder_attention`={attention!r} is unknown; use "spatial" or "released".')
        self.input_projections = nn.ModuleList(_Projection(channels, dim, bias=True) for channels in in_channels)
        self.lateral_projections = nn.ModuleList(_Projection(channels, dim, bias=False) for channels in in_channels)
        # Row 0 belongs to the coarsest level, the order in which the levels enter the transformer.
        # Small, unlike the released code's N(0, 1): see QueryTransformer.
        self.level_embedding = nn.Parameter(0.02 * torch.randn(len(in_channels), dim))
        self.layers = nn.ModuleList(
            DecoderLayer(dim, num_heads, ffn_dim, dropout, attention) for _ in range(num_layers)
        )

    def forward(self, features: Sequence[torch.Tensor], mask: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Decode the levels of one pyramid.

        Args:
            features: (B, C_l, H_l, W_l) for every level, finest first.
            mask: (B, 1, H, W) in [0, 1], how much each place counts; None where all do.

        Returns:
            (B, dim, H_l, W_l) for every level, finest first.
        """
        projected = [project(level) for project, level in zip(self.input_projections, features, strict=True)]
        coarse_first = [
            level.flatten(2).transpose(1, 2) + embedding
            for level, embedding in zip(reversed(projected), self.level_embedding, strict=True)
        ]  # each (B, H_l * W_l, dim)
        tokens = torch.cat(coarse_first, dim=1)
        bias = None
        if mask is not None:
            sizes = [(level.shape[-2], level.shape[-1]) for level in reversed(projected)]
            bias = torch.cat([key_bias(mask, size) for size in sizes], dim=-1)
        for layer in self.layers:
            tokens = self.run(layer, tokens, bias)
        decoded = reversed(tokens.split([level.shape[1] for level in coarse_first], dim=1))
        return [
            level.transpose(1, 2).reshape(shape.shape) + lateral(raw)
            for level, shape, lateral, raw in zip(decoded, projected, self.lateral_projections, features, strict=True)
        ]

    def idle_parameters(self) -> list[nn.Parameter]:
        """Parameters that the chosen attention never uses: query and key of every layer if it is "released"."""
        return [
            parameter
            for layer in self.layers
            if isinstance(layer, DecoderLayer) and not layer.is_spatial
            for projection in (layer.attention.query, layer.attention.key)
            for parameter in projection.parameters()
        ]
