"""How well a SeeCoder does on held-out pictures, and how much of that is owed to each picture's own context."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from data.shards.caching.moments import MEAN, STD
from train.sources.world_data import chunks
from train.stages.noise import held_out_keys

_Condition = tuple[Tensor, Tensor | None]  # context and pooled vector


def token_similarity(context: Tensor) -> float:
    """Mean cosine between different tokens of one picture, (B, N, width) with N > 1: 1 is one token, repeated."""
    directions = normalize(context.float(), dim=-1)
    cosines = directions @ directions.transpose(1, 2)  # (B, N, N)
    count = cosines.shape[-1]
    own = cosines.diagonal(dim1=1, dim2=2).sum(1)
    return float(((cosines.sum((1, 2)) - own) / max(1, count * (count - 1))).mean())


def held_out_figures(stage: Any) -> dict[str, float]:
    """Held-out loss with each picture's own context, another's, and none; and the true tokens' in the world.

    All use the same noise and timesteps, so the differences are almost free of noise: `gap_shuffled` above zero says
    that the context is used, `gap_true_tokens` is what is still missing. `token_similarity` near 1 says that the tokens
    of a context have become one and the same. A single picture has no other's context: `gap_shuffled` is left out.
    Of pairs the encoder sees the reference, and the true tokens are those of the picture.

    Args:
        stage: The `SeeCoderStage`, with the weights that are evaluated.

    Returns:
        The figures by name; none if nothing is held out.
    """
    data = stage.data
    count = len(data.held_out_pixels)
    if not count:
        return {}
    if count == 1:
        print("gap_shuffled is left out: it takes two held-out pictures, and there is one", flush=True)
    parts = chunks(count, data.batch_size)
    encoded = [stage.encode(data.held_out_batch(part, stage.device), None) for part in parts]
    similarity = sum(token_similarity(context) * len(context) / count for context, _ in encoded)
    totals: dict[str, float] = {}
    for part, contexts in zip(parts, _conditions(stage, parts, encoded), strict=True):
        batch = data.held_out_batch(part, stage.device)
        batch[MEAN], batch[STD] = stage.moments(batch)
        keys = held_out_keys(part)
        times = stage.uniform_timesteps(keys)
        for name, given in contexts.items():  # the same noise for all
            totals[name] = totals.get(name, 0.0) + float(stage.errors(batch, keys, times, *given).sum()) / count
    own = totals.pop("own")
    gaps = {f"gap_{name}": totals[name] - own for name in ("shuffled", "none") if name in totals}
    figures = {"held_out_loss": own, **gaps, "token_similarity": similarity}
    return figures | ({"gap_true_tokens": own - totals["true_tokens"]} if "true_tokens" in totals else {})


def _conditions(stage: Any, parts: Sequence[slice], encoded: Sequence[_Condition]) -> Iterator[dict[str, _Condition]]:
    """For each part, what the UNet is given in place of each other.

    Contexts are shuffled over all held-out pictures, each gets its predecessor's: within a part, pictures that go one
    at a time would get their own, and the gap would depend on `batch_size`.
    """
    scenes, conditioner = stage.data.held_out_scenes, stage.conditioner
    contexts = torch.cat([context for context, _ in encoded]).roll(1, 0)
    vectors = [vector for _, vector in encoded if vector is not None]
    pooled = torch.cat(vectors).roll(1, 0) if vectors else None
    for part, (context, vector) in zip(parts, encoded, strict=True):
        conditions: dict[str, _Condition] = {"own": (context, vector)}
        if len(contexts) > 1:
            conditions["shuffled"] = contexts[part], None if pooled is None else pooled[part]
        conditions["none"] = torch.zeros_like(context), None if vector is None else torch.zeros_like(vector)
        if scenes is not None and conditioner is not None:
            conditions["true_tokens"] = conditioner(scenes[part]), vector
        yield conditions
