"""What a call is conditioned on: contexts for and against, and how a text's lie beside the pictures'."""

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True)
class Contexts:
    """The tokens and pooled vectors of a call, one row a result.

    Attributes:
        context: (N, T, D), what the results should follow.
        negative_context: (N, T, D), what stands for "unconditional".
        pooled: (N, P) pooled vectors for SDXL, or None.
        negative_pooled: (N, P), or None.
    """

    context: torch.Tensor
    negative_context: torch.Tensor
    pooled: torch.Tensor | None = None
    negative_pooled: torch.Tensor | None = None

    def beside(self, text: "Contexts", weight: float | None) -> "Contexts":
        """Join the contexts of pictures with those of a text.

        Args:
            text: As many rows as here, or one for all; another number of tokens as it may be.
            weight: None puts the tokens side by side, so that attention chooses among pictures and text at every place;
                a number in [0, 1] is the text's part of the mean, token by token, where the shorter one is filled up
                with zeros; 0 and 1 leave one of them alone. Pooled vectors are mixed, half and half without a weight.
        """

        def tokens(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            other = other.to(own).expand(len(own), -1, -1)
            if weight is None:
                return torch.cat([own, other], dim=1)
            if weight in (0.0, 1.0):  # nothing is mixed, and zeros would take their part of the attention
                return other if weight else own
            length = max(own.shape[1], other.shape[1])
            return torch.lerp(pad_tokens(own, length), pad_tokens(other, length), weight)

        def pooled(own: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
            if own is None or other is None:
                return own
            return torch.lerp(own, other.to(own).expand_as(own), 0.5 if weight is None else weight)

        return Contexts(
            tokens(self.context, text.context),
            tokens(self.negative_context, text.negative_context),
            pooled(self.pooled, text.pooled),
            pooled(self.negative_pooled, text.negative_pooled),
        )

    def repeated(self, count: int) -> "Contexts":
        """Every row `count` times, copies next to each other."""
        rows = (self.context, self.negative_context, self.pooled, self.negative_pooled)
        return Contexts(*[None if row is None else row.repeat_interleave(count, dim=0) for row in rows])  # type: ignore[arg-type]


def pad_tokens(context: torch.Tensor, length: int) -> torch.Tensor:
    """Append zero tokens to (N, T, D) until there are `length`; a longer context stays as it is."""
    return functional.pad(context, (0, 0, 0, max(0, length - context.shape[1])))
