"""The query transformer: a fixed set of learned queries reads the decoded maps and becomes the context.

"Prompt-Free Diffusion", arXiv 2305.16223, Sec. 3.2; layer order after the released code at
SHI-Labs/Prompt-Free-Diffusion@f4295fc.
"""

from collections.abc import Sequence

import torch
from torch import nn

from seecoder.encoder.attention import Attention, CheckpointedModule, FeedForward, key_bias
from seecoder.encoder.positional_encoding import PositionalEncoding

INITIAL_BRANCH = 0.1  # of what self-attention and feed-forward parts add to a query, relative to Xavier's size


class QueryBlock(nn.Module):
    """Local queries read one level, then all queries talk to each other, then the feed-forward part; all post-norm.

    Args:
        dim: Width of queries and features.
        num_heads: Heads of both attentions.
        ffn_dim: Hidden width of the feed-forward part.
        positions_in_values: Add the features' positions to the values as well as to the keys.
    """

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, positions_in_values: bool = False) -> None:
        super().__init__()
        self.positions_in_values = positions_in_values
        self.cross_attention = Attention(dim, num_heads)
        self.cross_attention_norm = nn.LayerNorm(dim)
        self.self_attention = Attention(dim, num_heads)
        self.self_attention_norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, ffn_dim)
        self.feed_forward_norm = nn.LayerNorm(dim)
        # What these parts add is nearly the same for all queries. At full size, unlike here, the first steps make it
        # larger than what tells the queries apart, and the context becomes one token, repeated (Dong et al. 2021,
        # "Attention is not all you need"; small branches after Wang et al. 2022, DeepNet, Sec. 4).
        with torch.no_grad():
            self.self_attention.out.weight.mul_(INITIAL_BRANCH)
            self.feed_forward.linear2.weight.mul_(INITIAL_BRANCH)

    def forward(
        self,
        queries: torch.Tensor,
        query_positions: torch.Tensor,
        features: torch.Tensor,
        feature_positions: torch.Tensor | None,
        num_global: int,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Update the queries.

        Args:
            queries: (B, Q, dim), the `num_global` global ones first.
            query_positions: (Q, dim), added wherever queries serve as query or key of an attention, never to values.
            features: (B, N, dim), one level's positions.
            feature_positions: (N, dim) or (B, N, dim), added to the keys, and to the values if the block was built so;
                None for none.
            num_global: How many queries never look at the features themselves.
            bias: (B, 1, 1, N), added to the logits of the features; None for none.

        Returns:
            (B, Q, dim).
        """
        global_queries, local_queries = queries[:, :num_global], queries[:, num_global:]
        keys = features if feature_positions is None else features + feature_positions.to(features.dtype)
        values = keys if self.positions_in_values else features
        read = self.cross_attention(local_queries + query_positions[num_global:], keys, values, bias)
        local_queries = self.cross_attention_norm(local_queries + read)

        queries = torch.cat([global_queries, local_queries], dim=1)
        positioned = queries + query_positions
        queries = self.self_attention_norm(queries + self.self_attention(positioned, positioned, queries))
        return self.feed_forward_norm(queries + self.feed_forward(queries))


class QueryTransformer(CheckpointedModule):
    """Learned queries that read the levels in turn, finest first: block i reads level i mod (number of levels).

    Args:
        num_levels: Number of levels.
        dim: Width of levels, queries and context.
        num_heads: Heads of the attentions.
        num_layers: Number of blocks.
        ffn_dim: Hidden width of their feed-forward parts.
        num_global: Queries that see the picture only through the local ones.
        num_local: Queries that read the levels.
        position_aware: Add a positional encoding to the keys of the levels (SeeCoder-PA).
        positions_in_values: Add it to their values, too.
    """

    def __init__(
        self,
        num_levels: int,
        dim: int,
        num_heads: int,
        num_layers: int,
        ffn_dim: int,
        num_global: int,
        num_local: int,
        position_aware: bool,
        positions_in_values: bool = False,
    ) -> None:
        super().__init__()
        self.num_global = num_global
        self.num_levels = num_levels
        self.queries = nn.Parameter(torch.randn(num_global + num_local, dim))
        self.query_positions = nn.Parameter(torch.randn(num_global + num_local, dim))
        # Row 0 belongs to the finest level: the other way round than the decoder's table, as released.
        # Small, unlike the released code's N(0, 1): it is the same for every picture, and at that size it drowns them.
        self.level_embedding = nn.Parameter(0.02 * torch.randn(num_levels, dim))
        blocks = (QueryBlock(dim, num_heads, ffn_dim, positions_in_values) for _ in range(num_layers))
        self.blocks = nn.ModuleList(blocks)
        self.position_encoding = PositionalEncoding(dim) if position_aware else None

    def forward(
        self,
        levels: Sequence[torch.Tensor],
        position_jitter: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Read the levels.

        Args:
            levels: (B, dim, H_l, W_l) for every level, finest first.
            position_jitter: (L, 2) or (B, L, 2) offsets for `PositionalEncoding`, one pair a level; None for none.
            mask: (B, 1, H, W) in [0, 1], how much each place counts; None where all do.

        Returns:
            (B, num_global + num_local, dim), global queries first.
        """
        features = [
            level.flatten(2).transpose(1, 2) + embedding
            for level, embedding in zip(levels, self.level_embedding, strict=True)
        ]  # each (B, H_l * W_l, dim)
        positions: list[torch.Tensor | None] = [None] * self.num_levels
        if self.position_encoding is not None:
            for index, level in enumerate(levels):
                jitter = None if position_jitter is None else position_jitter[..., index, :]
                positions[index] = self.position_encoding(level.shape[-2], level.shape[-1], jitter)

        biases = [None if mask is None else key_bias(mask, (level.shape[-2], level.shape[-1])) for level in levels]
        queries = self.queries.expand(levels[0].shape[0], -1, -1)
        for index, block in enumerate(self.blocks):
            level = index % self.num_levels
            seen = (features[level], positions[level], self.num_global, biases[level])
            queries = self.run(block, queries, self.query_positions, *seen)
        return queries
