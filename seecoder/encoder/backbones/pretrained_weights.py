"""Fit pretrained backbone weights of several origins to the keys of our backbones.

The origins differ in names only, never in values:

* timm: `layers.1.downsample...`, with a final `norm` and a `head` that the encoder does not use;
* timm's `features_only` models: `stages_0...` for `stages.0...`;
* Microsoft's Swin files: a dictionary under "model", and the downsampling at the end of the stage before;
* transformers' Swin: `swin.encoder.layers...` with query, key and value apart;
* the released SeeCoder files: `ctx.image.imencoder...`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import nn

from seecoder.weights.safetensors_files import read_safetensors
from seecoder.weights.strict_loading import load_strict, refuse_differences

_TIMM = "timm:"
_IN_ENCODERS = ("backbone.", "ctx.image.imencoder.")

_PREFIXES = ("module.", "ctx.image.imencoder.", "imencoder.", "backbone.")
_MASK = "mask_token"  # of pretraining alone
_RECOMPUTED = ("relative_position_index", "attn_mask")  # buffers that follow from the window alone
# A Swin's output norms start at one and zero; no pretrained file has them.
_OUTPUT_NORM = re.compile(r"norm\d+\.(weight|bias)")

# transformers' Swin, version 5 and version 4 names, in the order in which they are applied.
_FROM_TRANSFORMERS = [
    (r"^swin\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^encoder\.", ""),
    (r"^hidden_states_norms\.stage(\d+)\.", lambda match: f"norm{int(match[1]) - 1}."),
    (r"^layernorm\.", "norm."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.self\.(query|key|value)\.", lambda match: f".attn.{match[1][0]}_proj."),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1_proj."),
    (r"\.attention\.(?:o_proj|output\.dense)\.", ".attn.proj."),
    (
        r"\.attention\.(?:self\.)?(?:relative_position_bias\.)?relative_position_bias_table",
        ".attn.relative_position_bias_table",
    ),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
]


@dataclass(frozen=True)
class BackboneCoverage:
    """What a file of pretrained weights covers.

    Attributes:
        loaded: Keys of the backbone that it fills.
        missing: Keys of the backbone that it does not: at most the Swin's output norms, which no pretrained file has.
        unused: Keys of the file that the backbone has no place for (classifier, final norm).
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]


def load_pretrained(backbone: nn.Module, source: str | Path | Mapping[str, object], *, name: str) -> BackboneCoverage:
    """Fill a backbone, called `name` in errors, with pretrained weights of any origin in this module's header.

    Raises:
        WeightsError: Any weight but a Swin's output norms is left uncovered, the source has more weights in one of the
            backbone's parts (as a deeper network has), or shapes differ. Nothing is loaded then.
    """
    if isinstance(source, str | Path):
        label, tensors = str(source), _read(source)
    else:
        label, tensors = "source", _unwrap(source)
    state = backbone.state_dict()
    matched, coverage = match_backbone_weights(state, tensors)
    uncovered = [key for key in coverage.missing if _OUTPUT_NORM.fullmatch(key) is None]
    has_stages = not getattr(backbone, "is_plain", False)
    parts = {_part(key, has_stages) for key in state}
    left_over = [key for key in coverage.unused if uncovered or _part(key, has_stages) in parts or "." not in key]
    refuse_differences(
        missing=uncovered,
        unexpected=[key for key in left_over if key != _MASK],
        source=label,
        target="the backbone",
        hint=f"Take weights of {name}.",
    )
    load_strict(backbone, {**{key: state[key] for key in coverage.missing}, **matched}, source=label)
    return coverage


def _read(source: str | Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a file, a folder with one, or "timm:NAME"; of a whole encoder, those of its backbone."""
    if str(source).startswith(_TIMM):
        return timm.create_model(str(source).removeprefix(_TIMM), pretrained=True).state_dict()
    file = Path(source)
    if file.is_dir():
        files = sorted(file.glob("*.safetensors"))
        if len(files) != 1:
            raise FileNotFoundError(f"`{file}` holds {len(files)} safetensors files; name the one with the backbone.")
        file = files[0]
    if not file.is_file():
        raise FileNotFoundError(f"the backbone `{file}` does not exist; give a safetensors file, or a folder with one.")
    tensors = read_safetensors(file)[0]
    inner = {key: value for key, value in tensors.items() if key.startswith(_IN_ENCODERS)}
    return inner or tensors


def _unwrap(source: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """Take the tensors out of the dictionaries that training codes put around them ("model", "state_dict")."""
    for key in ("model", "state_dict"):
        inner = source.get(key)
        if isinstance(inner, Mapping):
            source = inner
    if strange := [key for key, value in source.items() if not isinstance(value, torch.Tensor)]:
        raise TypeError(f"`source` holds {len(strange)} entries that are no tensors (first: {strange[0]!r}).")
    return {key: value for key, value in source.items() if isinstance(value, torch.Tensor)}


def match_backbone_weights(
    target: Mapping[str, torch.Tensor], source: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], BackboneCoverage]:
    """Find the tensors of `source` that belong to the keys of `target`.

    Args:
        target: State dict of a backbone.
        source: Tensors of one of the origins in this module's header.

    Returns:
        The tensors under the keys of `target`, and what was covered. Shapes are not compared.
    """
    named = {_strip(key): value for key, value in source.items() if not key.endswith(_RECOMPUTED)}
    if any("patch_embeddings.projection" in key for key in named):
        named = _from_transformers(named)
    # One level of downsampling is at the end of stage 0 or at the start of stage 1: only the former has it in stage 0.
    ends_with_downsample = any(key.startswith("layers.0.downsample.") for key in named)
    matched, unused = {}, []
    for key, value in named.items():
        if ends_with_downsample:
            key = re.sub(r"^layers\.(\d+)\.downsample", lambda match: f"layers.{int(match[1]) + 1}.downsample", key)
        fitting = next((name for name in _spellings(key) if name in target), None)
        if fitting is None:
            unused.append(key)
        else:
            matched[fitting] = value
    missing = tuple(sorted(set(target) - set(matched)))
    return matched, BackboneCoverage(tuple(sorted(matched)), missing, tuple(sorted(unused)))


def _part(key: str, has_stages: bool) -> str:
    """The part of a network that a weight belongs to: `head`, a ViT's `blocks`, a pyramid's `layer3` or `stages.2`."""
    key = key.removeprefix("body.")
    stage = re.match(r"([a-z]+)[._](\d+)\.", key) if has_stages else None
    return f"{stage[1]}.{stage[2]}" if stage else key.partition(".")[0]


def _strip(key: str) -> str:
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key


def _spellings(key: str) -> list[str]:
    """The key as it is, as timm's `features_only` spells it, and both as our wrappers of timm's models hold them."""
    flat = re.sub(r"^(\w+)\.(\d+)\.", r"\1_\2.", key)
    unflat = re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", key)
    names = dict.fromkeys([key, flat, unflat])
    return [prefix + name for prefix in ("", "body.") for name in names]


def _from_transformers(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for key, value in tensors.items():
        for pattern, replacement in _FROM_TRANSFORMERS:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    for key in [key for key in renamed if ".attn.q_proj." in key]:
        parts = [renamed.pop(key.replace("q_proj", f"{part}_proj"), None) for part in "qkv"]
        if all(part is not None for part in parts):
            renamed[key.replace("q_proj", "qkv")] = torch.cat([part for part in parts if part is not None])
    return renamed
