"""Reading and writing an encoder: folders, released files, pretrained backbones.

A base class of `seecoder.encoder.model.SeeCoder`, apart from it so that each of the two can be read alone.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin
from torch import nn

from seecoder.encoder.backbones.pretrained_weights import (
    BackboneCoverage,
    is_output_norm,
    match_backbone_weights,
    read_backbone,
    unwrap,
)
from seecoder.encoder.backbones.swin import SwinBackbone
from seecoder.encoder.official import PREFIX, from_official, is_position_aware, to_official
from seecoder.weights.safetensors_files import WeightsError, read_safetensors, write_safetensors
from seecoder.weights.strict_loading import load_strict

__all__ = ["EncoderFiles"]

_RELEASED_STAGES = 4  # stages of the Swin in the released files


class EncoderFiles(ModelMixin, ConfigMixin):
    """The part of `SeeCoder` that knows files. It needs `backbone` and `pooled_projection`, and a configuration."""

    backbone: Any
    pooled_projection: nn.Linear | None
    _mean: tuple[float, ...]
    _std: tuple[float, ...]
    _official_metadata: dict[str, str] | None = None  # the header of the released file that was read

    def load_backbone_weights(self, source: str | Path | Mapping[str, object]) -> BackboneCoverage:
        """Fill the backbone with pretrained weights, for training from scratch.

        Args:
            source: a safetensors file or a folder with one, "timm:NAME" (fetched by timm), or the tensors themselves:
                as timm saves them (`timm.create_model(name, pretrained=True).state_dict()`), as Microsoft's Swin files
                hold them (under "model"), with transformers' names, or a backbone of ours.

        Returns:
            Which keys were filled, which not, and which entries of the source were not needed.

        Raises:
            WeightsError: any weight of the backbone is left uncovered, except a Swin's output norms (no pretrained file
                has them; they stay as they are), or shapes differ. Nothing is loaded then.
        """
        if isinstance(source, str | Path):
            label, tensors = str(source), read_backbone(source)
        else:
            label, tensors = "source", unwrap(source)
        state = self.backbone.state_dict()
        matched, coverage = match_backbone_weights(state, tensors)
        uncovered = [key for key in coverage.missing if not is_output_norm(key)]
        if uncovered:
            unused = ", ".join(coverage.unused[:3])
            raise WeightsError(
                f"`{label}` lacks {len(uncovered)} of the backbone's {len(state)} weights (first: "
                f"{', '.join(uncovered[:3])}) and has {len(coverage.unused)} others{unused and f' (first: {unused})'}. "
                f"Take weights of {self.config['backbone']}."
            )
        load_strict(self.backbone, {**{key: state[key] for key in coverage.missing}, **matched}, source=label)
        return coverage

    @classmethod
    def from_official(cls, source: str | Path | Mapping[str, torch.Tensor], **config: Any) -> Self:
        """Load an encoder in the layout of the released files; plain or position-aware is read off the keys.

        Args:
            source: a safetensors file, or its tensors.
            **config: constructor arguments for other sizes than the released one. `decoder_attention` is "released"
                unless given.

        Returns:
            The encoder, in eval mode and in the floating-point dtype of the tensors (the widest, should they differ).

        Raises:
            WeightsError: keys are missing or unexpected, or shapes differ.
            ValueError: `position_aware` contradicts the keys, or the sizes are none of a released file.
        """
        if isinstance(source, Mapping):
            label, tensors, metadata = "source", dict(source), {}
        else:
            label, (tensors, metadata) = str(source), read_safetensors(source)
        position_aware = is_position_aware(tensors)
        if config.setdefault("position_aware", position_aware) != position_aware:
            found = "a" if position_aware else "no"
            raise ValueError(
                f"`position_aware`={config['position_aware']}, but `{label}` has {found} positional encoding."
            )
        encoder = cls(**{"decoder_attention": "released", **config})
        backbone = encoder._released_backbone()
        # Not diffusers' `to`: it warns of modules in float32, which look after themselves here.
        nn.Module.to(encoder, _widest_dtype(tensors, label))
        load_strict(encoder, from_official(tensors, encoder.state_dict(), backbone, source=label), source=label)
        encoder._official_metadata = metadata
        return encoder.eval()

    def save_official(self, path: str | Path) -> None:
        """Write the encoder in the layout of the released files, whole or not at all.

        A file that `from_official` read comes back byte for byte, its header included.

        Args:
            path: the safetensors file to write.

        Raises:
            ValueError: the encoder has parts that the layout has no place for: another backbone than a Swin of four
                stages, a pooled projection, pixel statistics.
        """
        tensors = to_official(self.state_dict(), self._released_backbone())
        write_safetensors(path, tensors, self._official_metadata or {})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, **kwargs: Any) -> Any:
        """Load a folder or Hub repository that `save_pretrained` wrote, strictly.

        Args:
            pretrained_model_name_or_path: folder, or name of a repository on the Hub.
            **kwargs: those of `diffusers.ModelMixin.from_pretrained` (`dtype`, `subfolder`, `revision`, `token`, ...).
                Only safetensors are read.

        Returns:
            The encoder in eval mode; with `output_loading_info=True`, a pair of it and diffusers' report.

        Raises:
            WeightsError: weights are missing, unexpected or of another shape. diffusers alone would only log them.
            ValueError: `use_safetensors=False`.
        """
        if kwargs.pop("use_safetensors", None) is False:
            raise ValueError(
                "`use_safetensors`=False would load a pickle, which can run code; only safetensors are read."
            )
        if "dtype" in kwargs:
            kwargs["torch_dtype"] = kwargs.pop("dtype")  # the name that older diffusers know, and newer ones still do
        wants_report = kwargs.pop("output_loading_info", False)
        if kwargs.get("device_map") is None and kwargs.get("quantization_config") is None:
            # The other way of loading would cast the positional encoding, which is kept in float32.
            kwargs["low_cpu_mem_usage"] = False
        source = pretrained_model_name_or_path
        try:
            loaded: Any = super().from_pretrained(source, use_safetensors=True, output_loading_info=True, **kwargs)
        except RuntimeError as error:
            if "size mismatch" not in str(error):
                raise
            lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
            raise WeightsError(f"{len(lines)} weights of `{source}` have another shape (first: {lines[0]}).") from error
        encoder, report = loaded
        _check_report(report, str(source), encoder.config["position_aware"])
        return (encoder, report) if wants_report else encoder

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write configuration and weights to a folder for `from_pretrained`.

        Args:
            save_directory: the folder; created if it does not exist.
            *args: those of `diffusers.ModelMixin.save_pretrained`, in its order.
            **kwargs: the same by name (`variant`, `max_shard_size`, `push_to_hub`, ...).

        Raises:
            ValueError: `safe_serialization=False`.
            WeightsError: a weight has no values (it is on the meta device).
            NotADirectoryError: `save_directory` is a file.
        """
        positional = dict(zip(("is_main_process", "save_function", "safe_serialization"), args, strict=False))
        if {**positional, **kwargs}.get("safe_serialization", True) is False:
            raise ValueError("`safe_serialization`=False would write a pickle, which no reader here accepts.")
        if Path(save_directory).is_file():
            raise NotADirectoryError(f"`save_directory`={str(save_directory)!r} is a file; give a folder.")
        empty = [name for name, tensor in self.state_dict().items() if tensor.is_meta]
        if empty:
            raise WeightsError(
                f"{len(empty)} weights have no values yet (first: {', '.join(empty[:3])}); load them first."
            )
        super().save_pretrained(save_directory, *args, **kwargs)

    def _released_backbone(self) -> SwinBackbone:
        """Give the backbone if the encoder can be told in the released layout.

        Raises:
            ValueError: it cannot.
        """
        backbone = self.backbone
        if not isinstance(backbone, SwinBackbone) or len(backbone.channels) != _RELEASED_STAGES:
            raise ValueError(
                f"`backbone`={self.config['backbone']!r} is not a Swin of four stages, as the released layout has."
            )
        if self.pooled_projection is not None:
            raise ValueError("the released layout has no place for a pooled projection (`pooled_dim`).")
        if any(self._mean) or any(value != 1 for value in self._std):
            raise ValueError(
                "the released layout has no place for `image_mean` and `image_std`; readers take raw pixels."
            )
        return backbone


def _widest_dtype(tensors: Mapping[str, torch.Tensor], source: str) -> torch.dtype:
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if not dtypes:
        raise WeightsError(f"`{source}` holds no weights of an encoder; expected keys that begin with `{PREFIX}`.")
    return max(dtypes, key=lambda dtype: dtype.itemsize)


def _check_report(report: Mapping[str, Any], source: str, position_aware: bool) -> None:
    """Raise on what diffusers would only log."""
    variant = "position-aware" if position_aware else "plain"
    for kind in ("missing", "unexpected", "mismatched"):
        keys = sorted(str(key) for key in report[f"{kind}_keys"])
        if keys:
            raise WeightsError(
                f"{len(keys)} weights of `{source}` are {kind} (first: {', '.join(keys[:3])}); it is configured as a "
                f"{variant} encoder. The folder is damaged or mixed from two; export it again."
            )
