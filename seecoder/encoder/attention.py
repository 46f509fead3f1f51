"""Attention and feed-forward blocks that the decoder and the query transformer share.

Both follow `torch.nn.MultiheadAttention` and the post-norm transformer of the published SeeCoder ("Prompt-Free
Diffusion", arXiv 2305.16223, Sec. 3.2). Query, key and value have matrices of their own here: the released files keep
them fused (`in_proj_weight`), but the one-picture function of the released decoder uses the value rows alone, and only
separate parameters can be left out of an optimiser.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_NEVER = 1e-30  # what does not count, counts so much: its logarithm has to be a number


class CheckpointedModule(nn.Module):
    """A module whose parts can be recomputed in the backward pass instead of being kept.

    The two attributes are what `diffusers.ModelMixin.enable_gradient_checkpointing` looks for and sets.
    """

    gradient_checkpointing: bool
    _gradient_checkpointing_func: Callable[..., Any] | None

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func = None

    def run(self, part: Callable[..., torch.Tensor], *args: Any) -> torch.Tensor:
        """Call `part(*args)`, recomputing it in the backward pass if checkpointing is on."""
        # Keyed on gradients and not on `.training`: a model in eval mode may be trained through, too.
        if self.gradient_checkpointing and self._gradient_checkpointing_func is not None and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(part, *args)
        return part(*args)


class Attention(nn.Module):
    """Multi-head attention with biases, as in `torch.nn.MultiheadAttention(batch_first=True)`.

    Args:
        dim: Width of the tokens, a multiple of `num_heads`.
        num_heads: Number of heads.
        dropout: Probability with which an attention weight is dropped in training.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        for projection in (self.query, self.key, self.value):
            # The published code draws one (3 * dim, dim) matrix, whose Xavier bound is smaller by sqrt(2).
            nn.init.xavier_uniform_(projection.weight, gain=math.sqrt(0.5))
            nn.init.zeros_(projection.bias)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attend from `query` (B, Q, dim) over `key` and `value` (B, K, dim).

        Args:
            query: (B, Q, dim).
            key: (B, K, dim).
            value: (B, K, dim).
            bias: (B, 1, 1, K), added to the logits of every key; None for none.

        Returns:
            (B, Q, dim).
        """
        attended = F.scaled_dot_product_attention(
            self._split_heads(self.query(query)),
            self._split_heads(self.key(key)),
            self._split_heads(self.value(value)),
            attn_mask=bias,
            dropout_p=self.dropout if self.training else 0.0,
        )  # (B, heads, Q, dim / heads)
        return self.out(attended.transpose(1, 2).flatten(2))

    def attend_to_itself(self, tokens: torch.Tensor) -> torch.Tensor:
        """Let every token of `tokens` (B, N, dim) attend to itself alone: out(value(tokens)).

        With one key the softmax is exactly 1, so query and key play no part. In training the dropout of that single
        weight remains: each head of each token is zeroed with probability `dropout`, and scaled by 1 / (1 - dropout)
        otherwise.

        Returns:
            (B, N, dim).
        """
        value = self.value(tokens)
        if self.training and self.dropout > 0:
            heads = value.unflatten(-1, (self.num_heads, -1))  # (B, N, heads, dim / heads)
            weight = F.dropout(heads.new_ones(heads.shape[:-1]), self.dropout, training=True)
            value = (heads * weight.unsqueeze(-1)).flatten(2)
        return self.out(value)

    def _split_heads(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, dim / heads)


def key_bias(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Let positions of a map be attended to as much as a mask says that they count.

    Args:
        mask: (B, 1, H, W) in [0, 1] over the whole picture.
        size: (h, w) of the map.

    Returns:
        (B, 1, 1, h * w), the logarithm of the mask's mean over each cell; where nothing counts, about -69.
    """
    cells = F.interpolate(mask.float(), size=size, mode="area").flatten(2)
    return cells.clamp_min(_NEVER).log()[:, :, None].to(mask.dtype)


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them.

    Args:
        dim: Width of the tokens.
        hidden_dim: Width between the two layers.
        dropout: Probability after the ReLU, in training.
    """

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map `tokens` (B, N, dim) to (B, N, dim)."""
        return self.linear2(self.dropout(F.relu(self.linear1(tokens))))
