"""The key layout of the released SeeCoder files, read and written.

SHI-Labs/Prompt-Free-Diffusion@f4295fc, `seecoder-*.safetensors`: everything under `ctx.image.`, with `imencoder`
(Swin), `imdecoder` and `qtransformer`. Against our layout three things differ: names; query, key and value are fused
(`in_proj`); and the windows' index tables (`relative_position_index`, int64) are kept in the file although they follow
from the window.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from seecoder.encoder.backbones.swin import SwinBackbone
from seecoder.weights.safetensors_files import WeightsError, metadata_and_names, read_safetensors, write_safetensors
from seecoder.weights.strict_loading import check_fit, load_strict

PREFIX = "ctx.image."
_INDEX = "relative_position_index"
_STAGES = 4  # of the Swin in the released files

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


def is_official_file(path: str | Path) -> bool:
    """Whether a path is a safetensors file in the released layout, from its header alone."""
    return any(key.startswith(PREFIX) for key in metadata_and_names(path)[1])


def is_position_aware(keys: Iterable[str]) -> bool:
    """Whether released keys are those of SeeCoder-PA: only it has a positional encoding."""
    return any(key.startswith(f"{PREFIX}qtransformer.pe_layer.") for key in keys)


class OfficialLayout:
    """What an encoder has for files in the released layout: reading and writing."""

    _official_metadata: Mapping[str, str] = {}  # the header of the released file that was read

    @classmethod
    def from_official(cls, source: str | Path | Mapping[str, torch.Tensor], **config: Any) -> Self:
        """Load an encoder in the layout of the released files; plain or position-aware is read off the keys.

        Args:
            source: A safetensors file, or its tensors.
            **config: Constructor arguments for other sizes than the released one. `decoder_attention` is "released"
                unless given.

        Returns:
            The encoder, in eval mode and in the floating-point dtype of the tensors (the widest, should they differ).

        Raises:
            WeightsError: Keys are missing or unexpected, or shapes differ.
            ValueError: `position_aware` contradicts the keys, or the sizes are none of a released file.
        """
        build: Any = cls
        if isinstance(source, Mapping):
            label, tensors, metadata = "source", dict(source), {}
        else:
            label, (tensors, metadata) = str(source), read_safetensors(source)
        position_aware = is_position_aware(tensors)
        wanted = config.get("position_aware", position_aware)
        if wanted != position_aware:
            raise ValueError(f"`position_aware`={wanted} must be {position_aware}, as the keys of `{label}` are.")
        encoder = build(**{"decoder_attention": "released", **config, "position_aware": position_aware})
        backbone = released_backbone(encoder.backbone, encoder.config)
        # Not diffusers' `to`: it warns of modules in float32, which look after themselves here.
        nn.Module.to(encoder, _widest_dtype(tensors, label))
        load_strict(encoder, from_official(tensors, encoder.state_dict(), backbone, source=label), source=label)
        encoder._official_metadata = metadata
        return encoder.eval()

    def save_official(self: Any, path: str | Path) -> None:
        """Write the encoder in the layout of the released files, whole or not at all.

        A file that `from_official` read comes back byte for byte, its header included.

        Args:
            path: The safetensors file to write.

        Raises:
            ValueError: The encoder has parts that the layout has no place for: another backbone than a Swin of four
                stages, a pooled projection, pixel statistics.
        """
        backbone = released_backbone(self.backbone, self.config)
        write_safetensors(path, to_official(self.state_dict(), backbone), self._official_metadata)


def released_backbone(backbone: nn.Module, config: Mapping[str, Any]) -> SwinBackbone:
    """Give the backbone of an encoder if the released layout has a place for all its parts.

    Raises:
        ValueError: The backbone is no Swin of four stages, or there is a pooled projection, or pixel statistics, or
            values have positions.
    """
    if not isinstance(backbone, SwinBackbone) or len(backbone.channels) != _STAGES:
        raise ValueError(f"`backbone`={config['backbone']!r} must be a Swin of four stages, as in the released layout.")
    if config["pooled_dim"]:
        raise ValueError(f"`pooled_dim`={config['pooled_dim']} has no place in the released layout; it must be None.")
    if config["positions_in_values"]:
        raise ValueError("`positions_in_values`=True has no place in the released layout; it must be False.")
    if any(config["image_mean"]) or any(value != 1 for value in config["image_std"]):
        raise ValueError("`image_mean` and `image_std` have no place in the released layout; they must be 0 and 1.")
    return backbone


def key_map(keys: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Name the released key of every key of ours.

    Args:
        keys: Keys of our state dict.

    Returns:
        Released key -> the one key of ours that it holds, or the three (query, key, value) whose rows it stacks.

    Raises:
        ValueError: A key has no place in the released layout.
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
        state: State dict of an encoder on a Swin.
        backbone: Its backbone, for the index tables.

    Returns:
        Tensors under the released keys. The positional encoding takes the dtype of the queries (it is kept in float32
        inside).

    Raises:
        ValueError: The encoder has parts that the released layout has no place for.
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
        tensors: Tensors under the released keys.
        state: State dict of the encoder to be filled, for names and shapes.
        backbone: Its backbone, for the index tables.
        source: How to call the tensors in errors.

    Returns:
        Tensors under the keys of `state`.

    Raises:
        WeightsError: Keys are missing or unexpected, shapes differ, or an index table belongs to other windows.
    """
    expected = to_official(state, backbone)
    variant = "position-aware (SeeCoder-PA)" if is_position_aware(tensors) else "plain (SeeCoder)"
    hint = (
        f"The file looks like the {variant} variant with {len(tensors)} tensors; {len(expected)} are expected. "
        "An encoder of another size needs its sizes as arguments."
    )
    check_fit(tensors, expected, source=source, target="SeeCoder", hint=hint)
    for key, table in _index_tables(backbone).items():
        if not torch.equal(tensors[key].cpu(), table.cpu()):
            raise WeightsError(f"`{source}` holds another `{key}` than windows of its size have; the file is damaged.")
    renamed = {}
    for released, ours in key_map(state).items():
        renamed.update(zip(ours, tensors[released].chunk(len(ours)), strict=True))
    return renamed


def _widest_dtype(tensors: Mapping[str, torch.Tensor], source: str) -> torch.dtype:
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if not dtypes:
        raise WeightsError(f"`{source}` holds no weights of an encoder; expected keys that begin with `{PREFIX}`.")
    return max(dtypes, key=lambda dtype: dtype.itemsize)


def _rename(key: str) -> str:
    for pattern, replacement in _RULES:
        renamed, count = re.subn(f"^{pattern}", replacement, key)
        if count:
            return renamed
    raise ValueError(f"`{key}` has no place in the released layout; save this encoder with `save_pretrained`.")


def _index_tables(backbone: SwinBackbone) -> dict[str, torch.Tensor]:
    return {f"{PREFIX}imencoder.{name}": buffer for name, buffer in backbone.named_buffers() if name.endswith(_INDEX)}
