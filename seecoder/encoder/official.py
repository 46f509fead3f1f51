"""The key layout of the released SeeCoder files, read and written.

SHI-Labs/Prompt-Free-Diffusion@f4295fc, `seecoder-*.safetensors`: everything under `ctx.image.`, with `imencoder`
(Swin), `imdecoder` and `qtransformer`. Against our layout three things differ: names; query, key and value are fused
(`in_proj`); and the windows' index tables (`relative_position_index`, int64) are kept in the file although they follow
from the window.
"""

import re
from collections.abc import Iterable, Mapping

import torch

from seecoder.encoder.backbones.swin import SwinBackbone
from seecoder.weights.safetensors_files import WeightsError

__all__ = ["PREFIX", "from_official", "is_position_aware", "to_official"]

PREFIX = "ctx.image."
_INDEX = "relative_position_index"

# (pattern in our layout, replacement); the first that matches a key is the only one applied to it.
_FINEST = 3  # the decoder's finest level is called res3
_RULES = [
    (r"backbone\.layers\.(\d+)\.downsample\.", lambda m: f"imencoder.layers.{int(m[1]) - 1}.downsample."),
    (r"backbone\.", "imencoder."),
    (r"decoder\.level_embedding$", "imdecoder.level_embed"),
    (r"decoder\.input_projections\.(\d)\.conv\.", lambda m: f"imdecoder.inproj_layers.res{int(m[1]) + _FINEST}.0."),
    (r"decoder\.input_projections\.(\d)\.norm\.", lambda m: f"imdecoder.inproj_layers.res{int(m[1]) + _FINEST}.1."),
    (r"decoder\.lateral_projections\.(\d)\.conv\.", lambda m: f"imdecoder.lateral_layers.res{int(m[1]) + _FINEST}."),
    (
        r"decoder\.lateral_projections\.(\d)\.norm\.",
        lambda m: f"imdecoder.lateral_layers.res{int(m[1]) + _FINEST}.norm.",
    ),
    (r"decoder\.layers\.(\d+)\.attention\.", r"imdecoder.transformer.layers.\1.self_attn."),
    (r"decoder\.layers\.(\d+)\.attention_norm\.", r"imdecoder.transformer.layers.\1.norm1."),
    (r"decoder\.layers\.(\d+)\.feed_forward\.", r"imdecoder.transformer.layers.\1."),
    (r"decoder\.layers\.(\d+)\.feed_forward_norm\.", r"imdecoder.transformer.layers.\1.norm2."),
    (r"query_transformer\.queries$", "qtransformer.init_query.weight"),
    (r"query_transformer\.query_positions$", "qtransformer.query_pos_embedding.weight"),
    (r"query_transformer\.level_embedding$", "qtransformer.level_embed.weight"),
    (r"query_transformer\.position_encoding\.", "qtransformer.pe_layer."),
    (
        r"query_transformer\.blocks\.(\d+)\.cross_attention\.",
        r"qtransformer.transformer_crossatt_layers.\1.multihead_attn.",
    ),
    (r"query_transformer\.blocks\.(\d+)\.cross_attention_norm\.", r"qtransformer.transformer_crossatt_layers.\1.norm."),
    (r"query_transformer\.blocks\.(\d+)\.self_attention\.", r"qtransformer.transformer_selfatt_layers.\1.self_attn."),
    (r"query_transformer\.blocks\.(\d+)\.self_attention_norm\.", r"qtransformer.transformer_selfatt_layers.\1.norm."),
    (r"query_transformer\.blocks\.(\d+)\.feed_forward\.", r"qtransformer.transformer_feedforward_layers.\1."),
    (r"query_transformer\.blocks\.(\d+)\.feed_forward_norm\.", r"qtransformer.transformer_feedforward_layers.\1.norm."),
]
_FUSED = re.compile(r"(self_attn|multihead_attn)\.(query|key|value)\.(weight|bias)$")
_FUSED_PARTS = ("query", "key", "value")  # the order of the rows of in_proj


def is_position_aware(keys: Iterable[str]) -> bool:
    """Whether released keys are those of SeeCoder-PA: only it has a positional encoding."""
    return any(key.startswith(f"{PREFIX}qtransformer.pe_layer.") for key in keys)


def key_map(keys: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Name the released key of every key of ours.

    Args:
        keys: keys of our state dict.

    Returns:
        Released key -> the one key of ours that it holds, or the three (query, key, value) whose rows it stacks.

    Raises:
        ValueError: a key has no place in the released layout.
    """
    mapping: dict[str, tuple[str, ...]] = {}
    for key in keys:
        released = PREFIX + _rename(key).replace(".out.", ".out_proj.")
        fused = _FUSED.search(released)
        if fused is None:
            mapping[released] = (key,)
        elif fused[2] == _FUSED_PARTS[0]:
            stem, _, leaf = key.rsplit(".", 2)
            mapping[f"{released[: fused.start(2)]}in_proj_{leaf}"] = tuple(
                f"{stem}.{part}.{leaf}" for part in _FUSED_PARTS
            )
    return mapping


def to_official(state: Mapping[str, torch.Tensor], backbone: SwinBackbone) -> dict[str, torch.Tensor]:
    """Rename a state dict to the released layout.

    Args:
        state: state dict of an encoder on a Swin.
        backbone: its backbone, for the index tables.

    Returns:
        Tensors under the released keys. The positional encoding takes the dtype of the queries (it is kept in float32
        inside).

    Raises:
        ValueError: the encoder has parts that the released layout has no place for.
    """
    tensors = {}
    for released, ours in key_map(state).items():
        tensor = state[ours[0]] if len(ours) == 1 else torch.cat([state[key] for key in ours])
        if ".pe_layer." in released:
            tensor = tensor.to(state["query_transformer.queries"].dtype)
        tensors[released] = tensor.detach()
    return tensors | _index_tables(backbone)


def from_official(
    tensors: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], backbone: SwinBackbone, *, source: str
) -> dict[str, torch.Tensor]:
    """Rename tensors in the released layout to ours, refusing anything that does not fit exactly.

    Args:
        tensors: tensors under the released keys.
        state: state dict of the encoder to be filled, for names and shapes.
        backbone: its backbone, for the index tables.
        source: how to call the tensors in errors.

    Returns:
        Tensors under the keys of `state`.

    Raises:
        WeightsError: keys are missing or unexpected, shapes differ, or an index table belongs to other windows.
    """
    mapping, tables = key_map(state), _index_tables(backbone)
    expected = {released: _stacked_shape([state[key] for key in ours]) for released, ours in mapping.items()}
    expected |= {key: tuple(table.shape) for key, table in tables.items()}
    _check_keys(tensors, expected, source)
    for key, table in tables.items():
        if not torch.equal(tensors[key].cpu(), table.cpu()):
            raise WeightsError(f"`{source}` holds another `{key}` than windows of its size have; the file is damaged.")
    renamed = {}
    for released, ours in mapping.items():
        renamed.update(zip(ours, tensors[released].chunk(len(ours)), strict=True))
    return renamed


def _rename(key: str) -> str:
    for pattern, replacement in _RULES:
        renamed, count = re.subn(f"^{pattern}", replacement, key)
        if count:
            return renamed
    raise ValueError(f"`{key}` has no place in the released layout; save this encoder with `save_pretrained`.")


def _index_tables(backbone: SwinBackbone) -> dict[str, torch.Tensor]:
    return {f"{PREFIX}imencoder.{name}": buffer for name, buffer in backbone.named_buffers() if name.endswith(_INDEX)}


def _stacked_shape(parts: list[torch.Tensor]) -> tuple[int, ...]:
    return (sum(part.shape[0] for part in parts), *parts[0].shape[1:])


def _check_keys(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Raise on the first kind of difference, with the count and the first three names."""
    variant = "position-aware (SeeCoder-PA)" if is_position_aware(tensors) else "plain (SeeCoder)"
    looks = f"The file looks like the {variant} variant with {len(tensors)} tensors; {len(expected)} are expected."
    missing = sorted(set(expected) - set(tensors))
    unexpected = sorted(set(tensors) - set(expected))
    misshaped = sorted(key for key in set(expected) & set(tensors) if tuple(tensors[key].shape) != expected[key])
    if missing:
        raise WeightsError(
            f"{len(missing)} weights are missing from `{source}` (first: {', '.join(missing[:3])}). {looks}"
        )
    if unexpected:
        raise WeightsError(
            f"{len(unexpected)} weights in `{source}` are unexpected (first: {', '.join(unexpected[:3])}). {looks}"
        )
    if misshaped:
        shown = ", ".join(f"{key} {tuple(tensors[key].shape)} for {expected[key]}" for key in misshaped[:3])
        raise WeightsError(
            f"{len(misshaped)} weights in `{source}` have another shape (first: {shown}). An encoder of another size "
            "needs its sizes as arguments."
        )
